// A short list without heap memory: what recording an op needs many times a step.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>

#include "jit/error.h"

namespace weft {

template <class T, std::size_t N>
class Few {
 public:
  Few() {}  // the storage stays unset
  Few(std::initializer_list<T> list) : Few(std::span<const T>(list.begin(), list.size())) {}
  explicit Few(std::span<const T> items) { append(items); }
  Few(const Few& other) { append(other); }
  Few& operator=(const Few& other) {
    if (this != &other) clear(), append(other);
    return *this;
  }
  ~Few() { clear(); }

  void push_back(T x) {
    if (size_ == N) fail(ErrorKind::usage, "too many operands of one op", "more than " + std::to_string(N));
    ::new (static_cast<void*>(data() + size_)) T(std::move(x));
    ++size_;
  }
  void append(std::span<const T> items) {
    for (const T& x : items) push_back(x);
  }
  void clear() {
    std::destroy_n(data(), size_);
    size_ = 0;
  }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T* data() { return reinterpret_cast<T*>(storage_); }
  const T* data() const { return reinterpret_cast<const T*>(storage_); }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }

 private:
  alignas(T) std::byte storage_[N * sizeof(T)];
  std::size_t size_ = 0;
};

}  // namespace weft
