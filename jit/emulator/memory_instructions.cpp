// Loads, stores, atomics, asynchronous copies, and conversions of addresses.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "jit/emulator/addresses.h"
#include "jit/emulator/lanes.h"

namespace weft::emulator {
namespace {

// Bits of Instruction::mode.
enum Flag : std::uint8_t { wide_base = 1 };

template <class T>
T read_memory(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <class T>
void write_memory(std::byte* p, T value) {
  std::memcpy(p, &value, sizeof(T));
}

// What a register holds of a value in memory: a narrow integer fills it.
template <class T>
using Stored =
    std::conditional_t<sizeof(T) == 8, std::uint64_t, std::conditional_t<std::is_signed_v<T>, std::int32_t, std::uint32_t>>;

// d (or a list of places) = memory of type T.
template <Space space, class T>
void load(Warp& w, const Instruction& i, Mask lanes) {
  std::uint64_t addresses[kLanes];
  addresses_of(w, i.a, i.mode & wide_base, i.offset, addresses);
  const Pointers p = resolve(w, i, lanes, space, addresses, unsigned(sizeof(T)) * i.count, Access::read);
  const std::uint32_t* places = i.count == 1 ? &i.d : &w.program.lists[i.list];
  for (unsigned k = 0; k < i.count; ++k) {
    if (!places[k]) continue;
    if (p.dense && i.count == 1) {
      const std::byte* from = p.at[0];
      write<Stored<T>>(w, places[k], lanes,
                       [&](int l) { return Stored<T>(read_memory<T>(from + std::size_t(l) * sizeof(T))); });
    } else {
      write<Stored<T>>(w, places[k], lanes,
                       [&](int l) { return Stored<T>(read_memory<T>(p.at[std::size_t(l)] + k * sizeof(T))); });
    }
  }
}

template <Space space, class T>
void store(Warp& w, const Instruction& i, Mask lanes) {
  std::uint64_t addresses[kLanes];
  addresses_of(w, i.a, i.mode & wide_base, i.offset, addresses);
  const Pointers p = resolve(w, i, lanes, space, addresses, unsigned(sizeof(T)) * i.count, Access::write);
  const std::uint32_t* places = i.count == 1 ? &i.d : &w.program.lists[i.list];
  for (unsigned k = 0; k < i.count; ++k) {
    const Source<T> value(w, places[k]);
    if (p.dense && i.count == 1 && !p.rewriting) {
      std::byte* to = p.at[0];
      for (int l = 0; l < kLanes; ++l) write_memory(to + std::size_t(l) * sizeof(T), value[l]);
      return;
    }
    for (Mask left = lanes; left; left &= left - 1) {
      const int lane = std::countr_zero(left);
      const T v = value[lane];
      if (p.rewriting) check_rewriting(w, i, p, lane, k * sizeof(T), &v, sizeof(T));
      write_memory(p.at[std::size_t(lane)] + k * sizeof(T), v);
    }
  }
}

// A parameter of the kernel, at an address that the text names: the same for all lanes.
template <Space, class T>
void load_parameter(Warp& w, const Instruction& i, Mask lanes) {
  const std::vector<std::byte>& all = w.block.launch.parameters;
  const auto* from = reinterpret_cast<const std::byte*>(w.words<std::uint64_t>(i.a)[0] + std::uint64_t(i.offset));
  if (from < all.data() || from + i.count * sizeof(T) > all.data() + all.size())
    w.block.fault(w, i, std::countr_zero(lanes), "a read out of bounds of the kernel's parameters",
                  std::to_string(all.size()) + " bytes");
  const std::uint32_t* places = i.count == 1 ? &i.d : &w.program.lists[i.list];
  for (unsigned k = 0; k < i.count; ++k) {
    if (!places[k]) continue;
    const auto value = Stored<T>(read_memory<T>(from + k * sizeof(T)));
    write<Stored<T>>(w, places[k], lanes, [&](int) { return value; });
  }
}

template <template <Space, class> class Pick, Space space>
Handler by_type(unsigned bytes, bool sign) {
  switch (bytes) {
    case 1:
      return sign ? Pick<space, std::int8_t>::run : Pick<space, std::uint8_t>::run;
    case 2:
      return sign ? Pick<space, std::int16_t>::run : Pick<space, std::uint16_t>::run;
    case 4:
      return Pick<space, std::uint32_t>::run;
    case 8:
      return Pick<space, std::uint64_t>::run;
    default:
      return nullptr;
  }
}
template <Space space, class T>
struct Load {
  static constexpr Handler run = load<space, T>;
};
template <Space space, class T>
struct LoadParameter {
  static constexpr Handler run = load_parameter<space, T>;
};
template <Space space, class T>
struct Store {
  static constexpr Handler run = store<space, T>;
};
template <template <Space, class> class Pick>
Handler by_space(Space space, unsigned bytes, bool sign) {
  if (space == Space::shared) return by_type<Pick, Space::shared>(bytes, sign);
  if (space == Space::local) return by_type<Pick, Space::local>(bytes, sign);
  return by_type<Pick, Space::generic>(bytes, sign);
}

// ---- atomics ----------------------------------------------------------------------------------------------------------------

enum class Update : std::uint8_t {
  add,
  min,
  max,
  conjunction,
  disjunction,
  exclusive,
  exchange,
  compare,
  increment,
  decrement
};

template <class T>
T updated(Update how, T old, T b, T c) {
  if constexpr (std::is_same_v<T, Pair<Half>> || std::is_same_v<T, Pair<Brain>>) {
    return {updated(how, old.low, b.low, c.low), updated(how, old.high, b.high, c.high)};
  } else if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, Brain>) {
    return from_float<T>(updated(how, to_float(old), to_float(b), to_float(c)));
  } else {
    switch (how) {
      case Update::add:
        if constexpr (std::is_integral_v<T>)
          return T(std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(b));
        else
          return old + b;
      case Update::min:
        return b < old ? b : old;
      case Update::max:
        return b > old ? b : old;
      case Update::exchange:
        return b;
      default:
        break;
    }
    if constexpr (std::is_integral_v<T>) {
      switch (how) {
        case Update::conjunction:
          return old & b;
        case Update::disjunction:
          return old | b;
        case Update::exclusive:
          return old ^ b;
        case Update::compare:
          return old == b ? c : old;
        case Update::increment:
          return old >= b ? T(0) : T(old + 1);
        case Update::decrement:
          return old == 0 || old > b ? b : T(old - 1);
        default:
          break;
      }
    }
    return old;
  }
}

// Lanes one after the other; other blocks run on other threads of the host.
template <class T>
void atomic(Warp& w, const Instruction& i, Mask lanes) {
  std::uint64_t addresses[kLanes];
  addresses_of(w, i.a, i.mode & wide_base, i.offset, addresses);
  const Pointers p = resolve(w, i, lanes, Space(i.bytes), addresses, sizeof(T), Access::update);
  const Source<T> b(w, i.b), c(w, i.c ? i.c : i.b);
  const auto how = Update(i.count);
  using Bits = std::conditional_t<sizeof(T) == 2, std::uint16_t, Word<T>>;
  for (Mask left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    std::atomic_ref<Bits> cell(*reinterpret_cast<Bits*>(p.at[std::size_t(lane)]));
    Bits old = cell.load();
    while (!cell.compare_exchange_weak(old, std::bit_cast<Bits>(updated(how, std::bit_cast<T>(old), b[lane], c[lane])))) {
    }
    if (i.d) w.words<Word<T>>(i.d)[lane] = old;
  }
}

Handler atomic_handler(Type type) {
  switch (type) {
    case Type::f32:
      return atomic<float>;
    case Type::f64:
      return atomic<double>;
    case Type::f16:
      return atomic<Half>;
    case Type::bf16:
      return atomic<Brain>;
    case Type::f16x2:
      return atomic<Pair<Half>>;
    case Type::bf16x2:
      return atomic<Pair<Brain>>;
    default:
      return with_integer(type, []<class T>() -> Handler { return atomic<T>; });
  }
}

// ---- cp.async ---------------------------------------------------------------------------------------------------------------

// [shared], [global], bytes; the count of bytes read, the rest zero, is in c where it is given.
void copy_async(Warp& w, const Instruction& i, Mask lanes) {
  std::uint64_t from[kLanes], to[kLanes];
  addresses_of(w, i.b, true, std::int64_t(w.program.lists[i.list]), from);
  addresses_of(w, i.a, i.mode & wide_base, i.offset, to);
  Mask reading = lanes;
  std::uint32_t size[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    size[l] = i.c ? std::min<std::uint32_t>(w.words<std::uint32_t>(i.c)[l], i.bytes) : i.bytes;
    if (size[l] == 0) reading &= ~(Mask{1} << l);
  }
  Pointers p{};
  if (reading) p = resolve(w, i, reading, Space::generic, from, i.bytes, Access::read);
  for (std::uint64_t& address : to)
    if (address >= kSharedWindow) address -= kSharedWindow;
  count_shared(w, lanes, to, i.bytes, Access::write);
  for (Mask left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const std::uint64_t address = to[lane];
    Warp::Copy copy{lane, w.copy_group[std::size_t(lane)], std::uint32_t(address), i.bytes, {}};
    if (address % i.bytes || address + i.bytes > w.block.shared_bytes())
      w.block.fault(w, i, lane, "an asynchronous copy to a misaligned address or out of bounds of shared memory",
                    "address " + std::to_string(address) + ", " + std::to_string(i.bytes) + " bytes; the block has " +
                        std::to_string(w.block.shared_bytes()));
    if (reading >> lane & 1) std::memcpy(copy.data, p.at[std::size_t(lane)], size[lane]);
    w.copies.push_back(copy);
  }
}
void commit_copies(Warp& w, const Instruction&, Mask lanes) {
  for (Mask left = lanes; left; left &= left - 1) ++w.copy_group[std::size_t(std::countr_zero(left))];
}
// All groups but the `c` latest; c = -1 for copies not yet committed too.
void wait_copies(Warp& w, const Instruction& i, Mask lanes) {
  std::vector<Warp::Copy> later;
  for (const Warp::Copy& copy : w.copies) {
    const bool done = i.offset < 0 || copy.group + std::uint64_t(i.offset) < w.copy_group[std::size_t(copy.lane)];
    if (!(lanes >> copy.lane & 1) || !done) {
      later.push_back(copy);
      continue;
    }
    std::uint64_t address[kLanes] = {};
    address[copy.lane] = copy.to;
    const Pointers p = resolve(w, i, Mask{1} << copy.lane, Space::shared, address, copy.bytes, Access::write, false);
    check_rewriting(w, i, p, copy.lane, 0, copy.data, copy.bytes);
    std::memcpy(p.at[std::size_t(copy.lane)], copy.data, copy.bytes);
  }
  w.copies = std::move(later);
}

// ---- addresses --------------------------------------------------------------------------------------------------------------

template <std::uint64_t window, bool to_generic>
void convert_address(Warp& w, const Instruction& i, Mask lanes) {
  const Source<std::uint64_t> a(w, i.a);
  write<std::uint64_t>(w, i.d, lanes, [&](int l) { return to_generic ? a[l] + window : a[l] - window; });
}
void is_space(Warp& w, const Instruction& i, Mask lanes) {
  const Source<std::uint64_t> a(w, i.a);
  write_predicate(w, i.d, lanes, gather_bits([&](int l) {
                    const std::uint64_t window = a[l] / kWindow * kWindow;
                    return i.mode == 1 ? window == kSharedWindow : i.mode == 2 ? window == kLocalWindow : window == 0;
                  }));
}
void no_operation(Warp&, const Instruction&, Mask) {}
void fence(Warp& w, const Instruction&, Mask) { w.block.trust(); }

Space space_of(const PtxInstruction& p) {
  for (std::string_view word : p.words) {
    if (word.starts_with("shared")) return Space::shared;
    if (word == "local") return Space::local;
    if (word == "param") return Space::param;
  }
  return Space::generic;
}

bool decode_load_store(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  const bool loading = p.words[0] == "ld" || p.words[0] == "ldu";
  const Type type = p.type();
  const Operand &address = p.operands.at(loading ? 1 : 0), &value = p.operands.at(loading ? 0 : 1);
  Space space = space_of(p);
  i.a = decoder.base(address, i);
  const bool named_parameter = loading && space == Space::param && !i.target && address.parts[0].kind == Operand::symbol;
  if (space == Space::param) space = i.target ? Space::local : Space::generic;  // of a call; of the kernel
  if (p.has("volatile") || p.has("relaxed") || p.has("acquire") || p.has("release")) i.mode |= kStrong;
  i.bytes = std::uint8_t(bits_of(type) / 8);
  if (type == Type::b128) return false;
  i.run = named_parameter ? by_type<LoadParameter, Space::param>(i.bytes, is_signed(type))
          : loading       ? by_space<Load>(space, i.bytes, is_signed(type))
                          : by_space<Store>(space, i.bytes, false);
  i.target = space == Space::generic ? decoder.program().access_sites++ : 0;
  if (space == Space::shared || (space == Space::generic && !p.has("global") && !p.has("param") && !p.has("const")))
    decoder.program().shared_granule = std::min<std::uint32_t>(decoder.program().shared_granule, i.bytes);
  const int bits = lane_bits(type);
  const auto place = [&](const Operand& o) {
    if (o.kind == Operand::nothing) return 0u;
    return loading ? decoder.destination(o, bits, is_signed(type)) : decoder.source(o, bits);
  };
  if (value.kind == Operand::list) {
    std::vector<std::uint32_t> places;
    for (const Operand& part : value.parts) places.push_back(place(part));
    i.count = std::uint8_t(places.size());
    i.list = decoder.list(places);
    if (i.count == 1) i.d = places[0];
  } else {
    i.d = place(value);
  }
  return i.run;
}

bool decode_atomic(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  struct Name {
    std::string_view word;
    Update how;
  };
  constexpr Name names[] = {{"add", Update::add},         {"min", Update::min},        {"max", Update::max},
                            {"and", Update::conjunction}, {"or", Update::disjunction}, {"xor", Update::exclusive},
                            {"exch", Update::exchange},   {"cas", Update::compare},    {"inc", Update::increment},
                            {"dec", Update::decrement}};
  const bool returns = p.words[0] == "atom";
  const Type type = p.type();
  const Name* how = nullptr;
  for (const Name& name : names)
    if (p.has(name.word)) how = &name;
  const std::size_t first = returns ? 1 : 0;
  if (!how || p.has("async") || p.operands.at(first + 1).kind == Operand::list) return false;
  const int bits = lane_bits(type);
  i.a = decoder.base(p.operands.at(first), i);
  i.b = decoder.place(p.operands.at(first + 1), bits);
  if (how->how == Update::compare) i.c = decoder.place(p.operands.at(first + 2), bits);
  if (returns && p.operands[0].kind != Operand::nothing) i.d = decoder.place(p.operands[0], bits);
  i.count = std::uint8_t(how->how);
  i.run = atomic_handler(type);
  i.bytes = std::uint8_t(space_of(p) == Space::shared ? Space::shared : Space::generic);
  if (bits_of(type) == 16) decoder.program().shared_granule = std::min(decoder.program().shared_granule, 2u);
  i.target = decoder.program().access_sites++;
  return i.run;
}

bool decode_copy(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  if (p.words.at(1) != "async" || p.has("bulk") || p.has("mbarrier")) return false;
  if (p.words.at(2) == "commit_group") {
    i.run = commit_copies;
  } else if (p.words.at(2) == "wait_group" || p.words.at(2) == "wait_all") {
    i.run = wait_copies;
    i.offset = p.words[2] == "wait_all" ? -1 : std::int64_t(p.operands.at(0).bits);
  } else {
    i.run = copy_async;
    Instruction from;
    i.b = decoder.base(p.operands.at(1), from);
    if (!(from.mode & wide_base)) return false;
    i.list = decoder.list({std::uint32_t(from.offset)});
    i.a = decoder.base(p.operands.at(0), i);
    i.bytes = std::uint8_t(p.operands.at(2).bits);
    if (p.operands.size() > 3 && !p.has("L2::cache_hint")) i.c = decoder.place(p.operands[3], 32);
    i.target = decoder.program().access_sites++;
  }
  return true;
}

bool decode_address(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  const Space space = space_of(p);
  const bool to_generic = p.words.at(1) != "to";
  if (p.type() != Type::u64) return false;
  i.d = decoder.place(p.operands.at(0), 64), i.a = decoder.place(p.operands.at(1), 64);
  if (space == Space::shared)
    i.run = to_generic ? convert_address<kSharedWindow, true> : convert_address<kSharedWindow, false>;
  else if (space == Space::local)
    i.run = to_generic ? convert_address<kLocalWindow, true> : convert_address<kLocalWindow, false>;
  else
    i.run = convert_address<0, true>;
  return true;
}

}  // namespace

bool decode_memory(const PtxInstruction& p, Decoder& decoder, Instruction& i) {
  const std::string_view op = p.words[0];
  if (op == "ld" || op == "ldu" || op == "st") return decode_load_store(p, decoder, i);
  if (op == "atom" || op == "red") return decode_atomic(p, decoder, i);
  if (op == "cp") return decode_copy(p, decoder, i);
  if (op == "cvta") return decode_address(p, decoder, i);
  if (op == "isspacep") {
    const Space space = space_of(p);
    i.run = is_space, i.mode = space == Space::shared ? 1 : space == Space::local ? 2 : 0;
    i.d = decoder.place(p.operands.at(0), 1), i.a = decoder.place(p.operands.at(1), 64);
    return true;
  }
  // Hints, and orderings that the emulator keeps anyway: it runs the instructions of a thread in their order.
  if (op == "membar" || op == "fence") {
    i.run = p.has("cta") || p.has("proxy") ? no_operation : fence;
    return true;
  }
  if (op == "prefetch" || op == "prefetchu" || op == "discard" || op == "applypriority" || op == "griddepcontrol" ||
      op == "nanosleep") {
    i.run = no_operation;
    return true;
  }
  return false;
}

}  // namespace weft::emulator
