// A topological order of an expression DAG with the position of each node: what every pass over expressions walks.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "jit/expr.h"

namespace weft {

class Order {
 public:
  // Arguments before users, depth first from the first root. It depends on the structure alone, never on the ids (which
  // depend on what was recorded before), so that texts made from it are the same in every process.
  explicit Order(std::span<const Expr> roots);

  const std::vector<Expr>& nodes() const { return nodes_; }
  std::vector<Expr> take() && { return std::move(nodes_); }
  int size() const { return int(nodes_.size()); }
  int position(Expr e) const { return positions_[find(e)]; }  // of a node below the roots

 private:
  std::size_t find(Expr e) const {  // the place of e in the table, or where it would be put
    std::size_t at = (e.id() * 0x9e3779b1u) >> shift_;
    while (positions_[at] >= 0 && keys_[at] != e.id()) at = (at + 1) & (keys_.size() - 1);
    return at;
  }
  bool contains(Expr e) const { return positions_[find(e)] >= 0; }
  void append(Expr e);
  void resize(int bits);

  std::vector<Expr> nodes_;
  std::vector<std::uint32_t> keys_;  // open addressing, at most half full
  std::vector<int> positions_;       // -1: free
  int shift_ = 32;
};

}  // namespace weft
