// How reductions fold. KIND: 0 sum, 1 max, which keeps NaN.
DEVICE real fold(real x, real y) { return KIND == 0 ? Sum()(x, y) : Max()(x, y); }
DEVICE real nothing() { return KIND == 0 ? real(0) : -infinity(); }

