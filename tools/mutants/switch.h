// Mutations behind a switch: a library compiled once holds all of them, and `fastsal_mutant` names the one that is on.
// Every type stands for a place of the source; `id` is the number of its first mutation. An operator is mutated as
// `a < less<7>{} < b`: precedence and type stay those of `a < b`. Reached places are noted.
#pragma once

#include <cstdint>
#include <type_traits>

extern "C" {
__attribute__((used)) inline int fastsal_mutant = -1;
__attribute__((used)) inline unsigned char fastsal_reached[1 << 17] = {};
}

namespace mutants {

inline bool on(int id) {
  fastsal_reached[id] = 1;
  return fastsal_mutant == id;
}
inline bool also(int id) { return fastsal_mutant == id; }

#define MUTANTS_COMPARISON(name, op, first, second)                        \
  template <int id>                                                        \
  struct name {};                                                          \
  template <int id, class A>                                               \
  struct name##_left {                                                     \
    A a;                                                                   \
  };                                                                       \
  template <int id, class A>                                               \
  name##_left<id, A> operator op(A a, name<id>) {                          \
    return {a};                                                            \
  }                                                                        \
  template <int id, class A, class B>                                      \
  bool operator op(name##_left<id, A> left, B b) {                         \
    if (on(id)) return left.a first b;                                     \
    if (also(id + 1)) return left.a second b;                              \
    return left.a op b;                                                    \
  }
MUTANTS_COMPARISON(less, <, <=, >)
MUTANTS_COMPARISON(less_equal, <=, <, >=)
MUTANTS_COMPARISON(greater, >, >=, <)
MUTANTS_COMPARISON(greater_equal, >=, >, <=)

// one mutation each: no number is left over for a second
#define MUTANTS_INFIX(name, op, other)                                     \
  template <int id>                                                        \
  struct name {};                                                          \
  template <int id, class A>                                               \
  struct name##_left {                                                     \
    A a;                                                                   \
  };                                                                       \
  template <int id, class A>                                               \
  name##_left<id, A> operator op(A a, name<id>) {                          \
    return {a};                                                            \
  }                                                                        \
  template <int id, class A, class B>                                      \
  auto operator op(name##_left<id, A> left, B b) -> decltype(left.a op b) { \
    if (on(id)) return other;                                              \
    return left.a op b;                                                    \
  }
MUTANTS_INFIX(equal, ==, left.a != b)
MUTANTS_INFIX(unequal, !=, left.a == b)
MUTANTS_INFIX(plus, +, left.a - b)
MUTANTS_INFIX(minus, -, left.a + b)
MUTANTS_INFIX(bits, &, left.a)

// `a += add<7>{} += b` adds what the right half makes of b
#define MUTANTS_ASSIGNMENT(name, op)                   \
  template <int id>                                    \
  struct name {};                                      \
  template <int id, class B>                           \
  auto operator op(name<id>, B b) -> decltype(b + b) { \
    return on(id) ? -b : b;                            \
  }
MUTANTS_ASSIGNMENT(add, +=)
MUTANTS_ASSIGNMENT(subtract, -=)

// in front of an operand: binds as tightly as a factor
template <int id>
struct negative {};
template <int id, class A>
auto operator%(negative<id>, A a) -> decltype(-a) {
  return on(id) ? a : -a;
}
template <int id>
struct negation {};
template <int id, class A>
bool operator%(negation<id>, const A& a) {
  return on(id) ? bool(a) : !a;
}

template <int id, class T>
T number(T v) {
  if (on(id)) return T(v + 1);
  if (also(id + 1)) return T(v - 1);
  return v;
}

template <int id>
bool flipped(bool v) {
  return on(id) ? !v : v;
}

template <int id, class T>
bool condition(const T& v) {
  if (on(id)) return true;
  return also(id + 1) ? false : bool(v);
}

// one of two variables, or one of two functions
template <int id, class T, class = std::enable_if_t<!std::is_class<T>::value>>
T& either(T& mine, T& other) {
  return on(id) ? other : mine;
}
template <int id, class Mine, class Other>
struct Functions {
  Mine mine;
  Other other;
  template <class... Arguments>
  auto operator()(Arguments... arguments) const -> decltype(mine(arguments...)) {
    if (on(id)) return other(arguments...);
    return mine(arguments...);
  }
};
template <int id, class Mine, class Other, class = std::enable_if_t<std::is_class<Mine>::value>>
Functions<id, Mine, Other> either(Mine mine, Other other) {
  return {mine, other};
}

}  // namespace mutants
