#include "jit/op_facts.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace weft {
namespace {

using Op = ExprOp;

double softplus_of(double a) { return std::max(a, 0.0) + std::log1p(std::exp(-std::abs(a))); }

constexpr ExprCost kFree{0, 0}, kSimple{1, 0}, kSpecial{1, 1}, kTwo{2, 2};

// clang-format off
constexpr OpFacts kFacts[] = {
    // op            arity name         cost      exact sign   binding cuda          integers  fold
    {Op::input,       0, "input",       kFree,    false, "",     0, "",              "",       nullptr},
    {Op::literal,     0, "literal",     kFree,    false, "",     0, "",              "",       nullptr},
    {Op::slot,        0, "slot",        kFree,    false, "",     0, "",              "",       nullptr},
    {Op::index,       0, "index",       kFree,    false, "",     0, "",              "",       nullptr},
    {Op::add,         2, "add",         kSimple,  false, " + ",  5, "+",             "",       [](double a, double b) { return a + b; }},
    {Op::sub,         2, "sub",         kSimple,  false, " - ",  5, "-",             "",       [](double a, double b) { return a - b; }},
    {Op::mul,         2, "mul",         kSimple,  false, "*",    6, "*",             "",       [](double a, double b) { return a * b; }},
    {Op::div,         2, "div",         kSpecial, false, "/",    6, "/",             "quotient", [](double a, double b) { return a / b; }},
    {Op::neg,         1, "neg",         kSimple,  true,  "-",    7, "-",             "",       [](double a, double) { return -a; }},
    {Op::min,         2, "min",         kSimple,  true,  "",     0, "min_of",        "",       [](double a, double b) { return std::min(a, b); }},
    {Op::max,         2, "max",         kSimple,  true,  "",     0, "max_of",        "",       [](double a, double b) { return std::max(a, b); }},
    {Op::pow,         2, "pow",         {4, 3},   false, "",     0, "pow_of",        "",       [](double a, double b) { return std::pow(a, b); }},
    {Op::eq,          2, "eq",          kSimple,  false, " == ", 3, "==",            "",       nullptr},
    {Op::ne,          2, "ne",          kSimple,  false, " != ", 3, "!=",            "",       nullptr},
    {Op::lt,          2, "lt",          kSimple,  false, " < ",  4, "<",             "",       nullptr},
    {Op::le,          2, "le",          kSimple,  false, " <= ", 4, "<=",            "",       nullptr},
    // & and |, not && and ||: a kernel should not branch where an instruction will do.
    {Op::logical_and, 2, "and",         kSimple,  false, " && ", 2, "&",             "",       nullptr},
    {Op::logical_or,  2, "or",          kSimple,  false, " || ", 1, "|",             "",       nullptr},
    {Op::logical_not, 1, "not",         kSimple,  false, "!",    7, "!",             "",       nullptr},
    {Op::select,      3, "select",      kSimple,  false, "",     0, "",              "",       nullptr},
    {Op::exp,         1, "exp",         kSpecial, false, "",     0, "exp_of",        "",       [](double a, double) { return std::exp(a); }},
    {Op::log,         1, "log",         kSpecial, false, "",     0, "log_of",        "",       [](double a, double) { return std::log(a); }},
    {Op::log1p,       1, "log1p",       kTwo,     false, "",     0, "log1p_of",      "",       [](double a, double) { return std::log1p(a); }},
    {Op::expm1,       1, "expm1",       kTwo,     false, "",     0, "expm1_of",      "",       [](double a, double) { return std::expm1(a); }},
    {Op::sqrt,        1, "sqrt",        kSpecial, false, "",     0, "sqrt_of",       "",       [](double a, double) { return std::sqrt(a); }},
    {Op::rsqrt,       1, "rsqrt",       kSpecial, false, "",     0, "rsqrt_of",      "",       [](double a, double) { return 1 / std::sqrt(a); }},
    {Op::tanh,        1, "tanh",        kTwo,     false, "",     0, "tanh_of",       "",       [](double a, double) { return std::tanh(a); }},
    {Op::sigmoid,     1, "sigmoid",     kTwo,     false, "",     0, "sigmoid_of",    "",       [](double a, double) { return 1 / (1 + std::exp(-a)); }},
    {Op::softplus,    1, "softplus",    {4, 2},   false, "",     0, "softplus_of",   "",       [](double a, double) { return softplus_of(a); }},
    {Op::erf,         1, "erf",         {4, 2},   false, "",     0, "erf_of",        "",       [](double a, double) { return std::erf(a); }},
    {Op::abs,         1, "abs",         kSimple,  true,  "",     0, "abs_of",        "",       [](double a, double) { return std::abs(a); }},
    {Op::sign,        1, "sign",        kSimple,  true,  "",     0, "sign_of",       "",       [](double a, double) { return double((a > 0) - (a < 0)); }},
    {Op::floor,       1, "floor",       kSimple,  true,  "",     0, "floor_of",      "",       [](double a, double) { return std::floor(a); }},
    {Op::sin,         1, "sin",         kTwo,     false, "",     0, "sin_of",        "",       [](double a, double) { return std::sin(a); }},
    {Op::cos,         1, "cos",         kTwo,     false, "",     0, "cos_of",        "",       [](double a, double) { return std::cos(a); }},
    {Op::to_real,     1, "to_real",     kSimple,  false, "",     0, "real",          "",       nullptr},
    {Op::to_integer,  1, "to_integer",  kSimple,  false, "",     0, "integer_of",    "i64",    nullptr},
    {Op::uniform,     1, "uniform",     {64, 0},  true,  "",     0, "",              "",       nullptr},  // ten rounds of two wide products and four xors
    {Op::element,     0, "element",     kFree,    false, "",     0, "",              "",       nullptr},
    {Op::load,       -1, "load",        {4, 0},   true,  "",     0, "",              "",       nullptr},  // of the address; the read is not counted
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
