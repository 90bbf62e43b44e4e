// How reductions fold. KIND: 0 sum, 1 max, which keeps NaN.
DEVICE real fold(real x, real y) { return KIND == 0 ? Sum()(x, y) : Max()(x, y); }
DEVICE real nothing() { return KIND == 0 ? real(0) : -infinity(); }
// What a thread folds, of any number of elements.
struct Folded {
  LongSum<real> sum;
  real high = -infinity();

  DEVICE void add(real x) {
    if constexpr (KIND == 0)
      sum.add(x);
    else
      high = fold(high, x);
  }
  DEVICE real value() const { return KIND == 0 ? sum.value() : high; }
};

