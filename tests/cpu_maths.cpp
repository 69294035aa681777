// The maths of csrc/rows/maths.h and the 16-bit conversions of csrc/rows/portable.h, callable from Python, and their
// distance from libm in units in the last place. The yardstick is libm in long double where that is wider.
#include <cmath>
#include <cstdint>

#include "rows/maths.h"

using namespace fastsal;

namespace {

// |got - exact| in units in the last place of `exact` as a T, subnormals included.
template <class T>
double ulps(T got, long double exact) {
  if (std::isinf(static_cast<T>(exact))) return got == static_cast<T>(exact) ? 0 : 1e300;
  const int smallest = std::numeric_limits<T>::min_exponent - std::numeric_limits<T>::digits;
  int exponent = smallest + std::numeric_limits<T>::digits;
  if (exact != 0) std::frexp(exact, &exponent);
  exponent -= std::numeric_limits<T>::digits;
  const long double distance = std::fabs(static_cast<long double>(got) - exact);
  return static_cast<double>(std::ldexp(distance, -(exponent > smallest ? exponent : smallest)));
}

template <class T, class Own, class Libm>
double worst(const T* v, int64_t count, Own own, Libm libm) {
  double most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double error = ulps<T>(own(v[i]), libm(static_cast<long double>(v[i])));
    if (!(error <= most)) most = error;
  }
  return most;
}

}  // namespace

extern "C" {

double worst_exp_f32(const float* v, int64_t count) {
  return worst(v, count, [](float x) { return exp_nonpositive(x); }, [](long double x) { return std::exp(x); });
}
double worst_exp_f64(const double* v, int64_t count) {
  return worst(v, count, [](double x) { return exp_nonpositive(x); }, [](long double x) { return std::exp(x); });
}
double worst_log_f64(const double* v, int64_t count) {
  return worst(v, count, [](double x) { return log_positive(x); }, [](long double x) { return std::log(x); });
}

// Sine and cosine pass through zero, so their distance is absolute: the larger of the two over all angles.
double farthest_turn(const double* u, int64_t count) {
  double most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Rotation got = turn(u[i]);
    const long double angle = 2 * 3.141592653589793238462643383279502884L * static_cast<long double>(u[i]);
    const double sine = static_cast<double>(std::fabs(got.sine - std::sin(angle)));
    const double cosine = static_cast<double>(std::fabs(got.cosine - std::cos(angle)));
    if (!(sine <= most)) most = sine;
    if (!(cosine <= most)) most = cosine;
  }
  return most;
}

void exp_f32(const float* v, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = exp_nonpositive(v[i]);
}
void exp_f64(const double* v, double* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = exp_nonpositive(v[i]);
}
void log_f64(const double* v, double* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = log_positive(v[i]);
}

void from_float16(const float16* v, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = value(v[i]);
}
void from_bfloat16(const bfloat16* v, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = value(v[i]);
}
void to_float16(const float* v, float16* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store(&out[i], v[i]);
}
void to_bfloat16(const float* v, bfloat16* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store(&out[i], v[i]);
}
}
