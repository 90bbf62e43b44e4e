#include "jit/op_facts.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "jit/vmath.h"

namespace weft {

using Op = ExprOp;

namespace {

double sum_of(double a, double b) { return a + b; }
double difference_of(double a, double b) { return a - b; }
double product_of(double a, double b) { return a * b; }
double quotient_of(double a, double b) { return a / b; }
double min_of(double a, double b) { return vmath::min(a, b); }
double max_of(double a, double b) { return vmath::max(a, b); }
double pow_of(double a, double b) { return std::pow(a, b); }
double negative_of(double a) { return -a; }
double rsqrt_of(double a) { return 1 / std::sqrt(a); }
double sigmoid_of(double a) { return 1 / (1 + std::exp(-a)); }
double softplus_of(double a) { return std::max(a, 0.0) + std::log1p(std::exp(-std::abs(a))); }
double sign_of(double a) { return vmath::sign(a); }

template <double (*f)(double)>
double of(double a, double) {
  return f(a);
}

constexpr ExprCost kFree{0, 0}, kSimple{1, 0}, kSpecial{1, 1}, kTwo{2, 2};
constexpr ExprCost kDraw{64, 0};    // ten rounds of two wide products and four xors
constexpr ExprCost kAddress{4, 0};  // of a load; what it reads is not counted here

// clang-format off
constexpr OpFacts kFacts[] = {
    // op            arity name         cost      exact  sign  binding cuda      integers   fold
    {Op::input,       0, "input",       kFree,    false, "",     0, "",          "",         nullptr},
    {Op::literal,     0, "literal",     kFree,    false, "",     0, "",          "",         nullptr},
    {Op::slot,        0, "slot",        kFree,    false, "",     0, "",          "",         nullptr},
    {Op::index,       0, "index",       kFree,    false, "",     0, "",          "",         nullptr},
    {Op::add,         2, "add",         kSimple,  false, " + ",  5, "+",         "",         sum_of},
    {Op::sub,         2, "sub",         kSimple,  false, " - ",  5, "-",         "",         difference_of},
    {Op::mul,         2, "mul",         kSimple,  false, "*",    6, "*",         "",         product_of},
    {Op::div,         2, "div",         kSpecial, false, "/",    6, "/",         "quotient", quotient_of},
    {Op::neg,         1, "neg",         kSimple,  true,  "-",    7, "-",         "",         of<negative_of>},
    {Op::min,         2, "min",         kSimple,  true,  "",     0, "min_of",    "",         min_of},
    {Op::max,         2, "max",         kSimple,  true,  "",     0, "max_of",    "",         max_of},
    {Op::pow,         2, "pow",         {4, 3},   false, "",     0, "pow_of",    "",         pow_of},
    {Op::eq,          2, "eq",          kSimple,  false, " == ", 3, "==",        "",         nullptr},
    {Op::ne,          2, "ne",          kSimple,  false, " != ", 3, "!=",        "",         nullptr},
    {Op::lt,          2, "lt",          kSimple,  false, " < ",  4, "<",         "",         nullptr},
    {Op::le,          2, "le",          kSimple,  false, " <= ", 4, "<=",        "",         nullptr},
    // In CUDA & and |: && and || are branches.
    {Op::logical_and, 2, "and",         kSimple,  false, " && ", 2, "&",         "",         nullptr},
    {Op::logical_or,  2, "or",          kSimple,  false, " || ", 1, "|",         "",         nullptr},
    {Op::logical_not, 1, "not",         kSimple,  false, "!",    7, "!",         "",         nullptr},
    {Op::select,      3, "select",      kSimple,  false, "",     0, "",          "",         nullptr},
    {Op::exp,         1, "exp",         kSpecial, false, "",     0, "exp_of",    "",         of<::exp>},
    {Op::log,         1, "log",         kSpecial, false, "",     0, "log_of",    "",         of<::log>},
    {Op::log1p,       1, "log1p",       kTwo,     false, "",     0, "log1p_of",  "",         of<::log1p>},
    {Op::expm1,       1, "expm1",       kTwo,     false, "",     0, "expm1_of",  "",         of<::expm1>},
    {Op::sqrt,        1, "sqrt",        kSpecial, false, "",     0, "sqrt_of",   "",         of<::sqrt>},
    {Op::rsqrt,       1, "rsqrt",       kSpecial, false, "",     0, "rsqrt_of",  "",         of<rsqrt_of>},
    {Op::tanh,        1, "tanh",        kTwo,     false, "",     0, "tanh_of",   "",         of<::tanh>},
    {Op::sigmoid,     1, "sigmoid",     kTwo,     false, "",     0, "sigmoid_of", "",        of<sigmoid_of>},
    {Op::softplus,    1, "softplus",    {4, 2},   false, "",     0, "softplus_of", "",       of<softplus_of>},
    {Op::erf,         1, "erf",         {4, 2},   false, "",     0, "erf_of",    "",         of<::erf>},
    {Op::abs,         1, "abs",         kSimple,  true,  "",     0, "abs_of",    "",         of<::fabs>},
    {Op::sign,        1, "sign",        kSimple,  true,  "",     0, "sign_of",   "",         of<sign_of>},
    {Op::floor,       1, "floor",       kSimple,  true,  "",     0, "floor_of",  "",         of<::floor>},
    {Op::sin,         1, "sin",         kTwo,     false, "",     0, "sin_of",    "",         of<::sin>},
    {Op::cos,         1, "cos",         kTwo,     false, "",     0, "cos_of",    "",         of<::cos>},
    {Op::to_real,     1, "to_real",     kSimple,  false, "",     0, "real",      "",         nullptr},
    {Op::to_integer,  1, "to_integer",  kSimple,  false, "",     0, "integer_of", "i64",     nullptr},
    {Op::narrow,      1, "narrow",      kSimple,  false, "",     0, "",          "",         nullptr},
    {Op::unless_zero, 2, "unless_zero", {2, 0},   true,  "",     0, "unless_zero", "",       nullptr},
    {Op::uniform,     1, "uniform",     kDraw,    true,  "",     0, "",          "",         nullptr},
    {Op::element,     0, "element",     kFree,    false, "",     0, "",          "",         nullptr},
    {Op::load,       -1, "load",        kAddress, true,  "",     0, "",          "",         nullptr},
};
// clang-format on

constexpr bool in_order() {
  for (std::size_t i = 0; i < std::size(kFacts); ++i)
    if (kFacts[i].op != Op(i)) return false;
  return std::size(kFacts) == std::size_t(Op::load) + 1;
}
static_assert(in_order(), "a row for each operation, in the order of ExprOp");

}  // namespace

const OpFacts& facts_of(ExprOp op) { return kFacts[std::size_t(op)]; }

}  // namespace weft
