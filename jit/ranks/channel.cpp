#include "jit/ranks/channel.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

#include "jit/error.h"

namespace weft {
namespace {

constexpr std::size_t kHeader = 5, kMostMessage = std::size_t(1) << 24;

using SocketAddresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

SocketAddresses resolve(const std::string& address, int port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (const int error = getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found))
    fail(ErrorKind::io, fmt::format("MASTER_ADDR: no such host '{}'", address), gai_strerror(error));
  return {found, freeaddrinfo};
}

}  // namespace

RankChannel::~RankChannel() {
  if (fd_ >= 0) close(fd_);
}

bool RankChannel::send(RankMessage::Kind kind, std::string_view text) {
  const std::lock_guard lock(sending_);
  std::string bytes(kHeader, '\0');
  const auto length = std::uint32_t(text.size());
  for (std::size_t i = 0; i < 4; ++i) bytes[i] = char(length >> (8 * i));
  bytes[4] = char(kind);
  bytes += text;
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t n = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    sent += std::size_t(n);
  }
  return true;
}

std::optional<RankMessage> RankChannel::take(bool& closed) {
  if (read_.size() < kHeader) return std::nullopt;
  std::size_t length = 0;
  for (std::size_t i = 0; i < 4; ++i) length |= std::size_t(static_cast<unsigned char>(read_[i])) << (8 * i);
  if (length > kMostMessage) closed = true;
  if (closed || read_.size() < kHeader + length) return std::nullopt;
  RankMessage message{RankMessage::Kind(read_[4]), read_.substr(kHeader, length)};
  read_.erase(0, kHeader + length);
  return message;
}

std::optional<RankMessage> RankChannel::receive(std::chrono::milliseconds wait, bool& closed) {
  closed = false;
  if (auto message = take(closed); message || closed) return message;
  pollfd ready{fd_, POLLIN, 0};
  if (poll(&ready, 1, int(wait.count())) <= 0) return std::nullopt;
  char buffer[65536];
  const ssize_t n = recv(fd_, buffer, sizeof buffer, MSG_DONTWAIT);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return std::nullopt;
  if (n <= 0) {
    closed = true;
    return std::nullopt;
  }
  read_.append(buffer, std::size_t(n));
  return take(closed);
}

Listener listen_at(const std::string& address, int port, bool inherited) {
  const SocketAddresses found = resolve(address, port);
  int error = 0;
  for (const addrinfo* a = found.get(); a; a = a->ai_next) {
    const int fd = socket(a->ai_family, SOCK_STREAM | (inherited ? 0 : SOCK_CLOEXEC), 0);
    if (fd < 0) continue;
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);  // one that has just been left; not one that is in use
    sockaddr_storage bound{};
    socklen_t size = sizeof bound;
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) == 0) {
      const auto taken = bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&bound)->sin6_port
                                                     : reinterpret_cast<const sockaddr_in*>(&bound)->sin_port;
      return {fd, ntohs(taken)};
    }
    error = errno;
    close(fd);
  }
  fail(ErrorKind::io, fmt::format("rank 0 cannot listen at {}:{}", address, port), std::strerror(error),
       error == EADDRINUSE ? "another program has the port: set MASTER_PORT to a free one"
                           : "MASTER_ADDR must be an address of the host of rank 0");
}

int connect_to(const std::string& address, int port, std::chrono::seconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  for (;;) {
    const SocketAddresses found = resolve(address, port);
    int error = 0;
    for (const addrinfo* a = found.get(); a; a = a->ai_next) {
      const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (fd < 0) continue;
      if (connect(fd, a->ai_addr, a->ai_addrlen) == 0) {
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        return fd;
      }
      error = errno;
      close(fd);
    }
    if (std::chrono::steady_clock::now() > end)
      fail(ErrorKind::io, fmt::format("rank 0 is not to be reached at {}:{}", address, port), std::strerror(error),
           "is it running, and is MASTER_ADDR its host?");
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace weft
