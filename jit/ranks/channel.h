// Messages between a rank and rank 0, over one TCP connection: four bytes of length, one of kind, the text.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace weft {

struct RankMessage {
  enum Kind : char {
    hello = 'H',    // rank to 0: JSON of who it is
    welcome = 'W',  // 0 to rank: all have joined
    fact = 'F',     // rank to 0: JSON {name, value, compare}
    answer = 'A',   // 0 to rank: JSON array of all values of that fact
    step = 'S',     // rank to 0: what it runs next, see StepMark; no answer
    beat = 'B',     // every second: what the rank is doing; from 0: nothing
    failed = 'X',   // rank to 0: its error
    end = 'E',      // 0 to rank: the first error of all
    bye = 'Q',      // rank to 0: it is done; 0 to rank: all are
  } kind = beat;
  std::string text;
};

// A connected socket. Many threads may send, one receives.
class RankChannel {
 public:
  RankChannel() = default;
  explicit RankChannel(int fd) : fd_(fd) {}
  ~RankChannel();
  RankChannel(RankChannel&& other) noexcept : fd_(other.fd_), read_(std::move(other.read_)) { other.fd_ = -1; }
  RankChannel& operator=(RankChannel&&) = delete;

  int fd() const { return fd_; }
  bool send(RankMessage::Kind kind, std::string_view text);  // false: the other side is gone
  // What has arrived; waits for at most that long (0: not at all). `closed` becomes true when the other side is gone, or has
  // sent what is no message.
  std::optional<RankMessage> receive(std::chrono::milliseconds wait, bool& closed);

 private:
  std::optional<RankMessage> take(bool& closed);
  int fd_ = -1;
  std::string read_;
  std::mutex sending_;
};

// Errors (ErrorKind::io): the port is taken, or the address is not this host's. Port 0: any free one. `inherited`: programs
// that this process starts have the socket too.
struct Listener {
  int fd = -1;
  int port = 0;
};
Listener listen_at(const std::string& address, int port, bool inherited = false);
// Tries again until somebody listens there or `limit` is over: then an Error (io).
int connect_to(const std::string& address, int port, std::chrono::seconds limit);

}  // namespace weft
