// What rows are made of (csrc/rows), callable from Python: sums that are rounded in a known direction, sums in lanes,
// the largest numbers of a row, the noise of a chunk, and the two searches of an L1 step.
#include "rows/l1_step.h"
#include "rows/largest.h"
#include "rows/margin_loss.h"
#include "rows/random_start.h"
#include "rows/softmax.h"

using namespace fastsal;

namespace {

template <class T>
struct Values {
  const T* values;
  FASTSAL_ROW T operator()(int64_t i) const { return values[i]; }
};

template <class T>
void directed(const T* a, const T* b, T* down, T* up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) down[i] = round_down_sum(a[i], b[i]), up[i] = round_up_sum(a[i], b[i]);
}

template <class T>
void towards(const T* x, const double* delta, T* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = add_towards(x[i], delta[i]);
}

template <class T>
void inside(const T* v, const T* clean, const T* low, const T* high, const T* eps, T* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = into_ball_and_box(v[i], clean[i], low[i], high[i], eps[i]);
}

template <class T>
void radii(const T* eps, double* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = inner_radius(eps[i]);
}

template <bool compensated, bool wide>
void norm_of(const double* v, int64_t size, double* out) {
  const RowNorm found = row_norm<compensated, wide>(size, Values<double>{v});
  out[0] = found.unit, out[1] = found.norm;
}

template <class T>
void largest(const T* v, int64_t size, T* value, bool* nan) {
  const Largest<T> found = largest_of<T>(size, Values<T>{v});
  *value = found.value, *nan = found.nan;
}

template <class T>
void ranking(const T* v, int64_t size, T* values, int64_t* indices) {
  const Ranking<T, 4> found = ranking_of<T, 4>(size, Values<T>{v});
  for (int64_t r = 0; r < 4; ++r) values[r] = found.value[r], indices[r] = found.index[r];
}

// A whole L1 step of one row without bounds; true where a gradient is not finite.
template <class T, class G>
bool l1_row(const T* x, const T* here, const G* grad, T* next, int64_t size, double eps, double alpha, int64_t topk,
            double* scratch) {
  const auto itself = [](int64_t i) { return i; };
  const UniformBox<T> box{-Limits<T>::largest, Limits<T>::largest};
  return l1_step_row(x, here, grad, next, size, T(eps), T(alpha), topk, box, scratch, itself, itself).nonfinite;
}

// Which elements move, in row-major order, of a row that lies in memory place by place, each with all its channels; how
// many probes it took to find the threshold.
template <class G>
int64_t choose(const G* grad, int64_t size, int64_t channels, int64_t topk, bool* moves, int64_t* moving) {
  const GradientKeys<const G*> keys{grad, size};
  const int64_t places = size / channels;
  const auto offset = [&](int64_t i) { return (i % places) * channels + i / places; };
  const auto choice = l1_choose(keys, keys.largest(), topk, offset);
  for (int64_t i = 0; i < size; ++i) moves[i] = choice.moves(keys.at(offset(i)), i);
  *moving = choice.moving;
  KeySearch<typename GradientKeys<const G*>::Key> search(keys.largest());
  int64_t probes = 0;
  for (; !search.done(); ++probes) search.report(search.probe(), keys.count_from(search.probe()), topk);
  return probes;
}

template <bool compensated>
int64_t shrink(double limit, double* magnitudes, double* rooms, int64_t count, double* found) {
  const Displaced displaced{magnitudes, rooms, count};
  ShrinkSearch search(limit, displaced.largest());
  while (!search.done) displaced.measure<compensated>(search);
  *found = search.probe;
  return search.passes;
}

}  // namespace

extern "C" {

void directed_f32(const float* a, const float* b, float* down, float* up, int64_t count) {
  directed(a, b, down, up, count);
}
void directed_f64(const double* a, const double* b, double* down, double* up, int64_t count) {
  directed(a, b, down, up, count);
}
void towards_f32(const float* x, const double* delta, float* out, int64_t count) { towards(x, delta, out, count); }
void towards_f64(const double* x, const double* delta, double* out, int64_t count) { towards(x, delta, out, count); }

void inside_f32(const float* v, const float* clean, const float* low, const float* high, const float* eps, float* out,
                int64_t count) {
  inside(v, clean, low, high, eps, out, count);
}
void inside_f64(const double* v, const double* clean, const double* low, const double* high, const double* eps,
                double* out, int64_t count) {
  inside(v, clean, low, high, eps, out, count);
}
void radii_f32(const float* eps, double* out, int64_t count) { radii(eps, out, count); }
void radii_f64(const double* eps, double* out, int64_t count) { radii(eps, out, count); }

void fold_f64(double* lanes, double* out) { *out = fold(lanes); }
void safe_units(const double* v, double* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = safe_unit(v[i]);
}

// The sum and the norm of a row; `exact`: with compensation.
void sums(const double* v, int64_t size, bool exact, double* out) {
  out[0] = exact ? lane_sum<true>(size, Values<double>{v}) : lane_sum<false>(size, Values<double>{v});
  out[1] = exact ? lane_norm<true>(size, Values<double>{v}) : lane_norm<false>(size, Values<double>{v});
}
// Unit and norm of a row whose squares may be no fp64 numbers.
void wide_norm(const double* v, int64_t size, bool exact, double* out) {
  if (exact)
    norm_of<true, true>(v, size, out);
  else
    norm_of<false, true>(v, size, out);
}
void plain_norm(const double* v, int64_t size, double* out) { norm_of<false, false>(v, size, out); }

void largest_f32(const float* v, int64_t size, float* value, bool* nan) { largest(v, size, value, nan); }
void largest_f64(const double* v, int64_t size, double* value, bool* nan) { largest(v, size, value, nan); }
int64_t first_above(const float* v, int64_t size, float bound) {
  return first_match(size, [&](int64_t i) { return v[i] > bound; });
}
int64_t rival_f32(const float* v, int64_t size, int64_t label) {
  return rival_of<float>(size, label, Values<float>{v});
}
void ranking_f32(const float* v, int64_t size, float* values, int64_t* indices) { ranking(v, size, values, indices); }
void ranking_f64(const double* v, int64_t size, double* values, int64_t* indices) { ranking(v, size, values, indices); }

// Both kinds of noise that 128 words make.
void noise(const uint32_t* words, double* normal, double* exponential) {
  normals(words, normal);
  signed_exponentials(words, exponential);
}

int64_t choose_f32(const float* grad, int64_t size, int64_t channels, int64_t topk, bool* moves, int64_t* moving) {
  return choose(grad, size, channels, topk, moves, moving);
}
int64_t choose_f64(const double* grad, int64_t size, int64_t channels, int64_t topk, bool* moves, int64_t* moving) {
  return choose(grad, size, channels, topk, moves, moving);
}

int64_t l1_scratch_of(int64_t size) { return l1_scratch(size); }
bool l1_row_f32(const float* x, const float* here, const float* grad, float* next, int64_t size, double eps,
                double alpha, int64_t topk, double* scratch) {
  return l1_row(x, here, grad, next, size, eps, alpha, topk, scratch);
}
bool l1_row_f64(const double* x, const double* here, const double* grad, double* next, int64_t size, double eps,
                double alpha, int64_t topk, double* scratch) {
  return l1_row(x, here, grad, next, size, eps, alpha, topk, scratch);
}
bool from_zero_of(float low, float high) { return UniformBox<float>{low, high}.from_zero(); }
bool worthwhile_of(int64_t classes) { return SoftmaxBlocks<float>::worthwhile(classes); }
double room_of(double clean, double delta, double low, double high) { return l1_room(clean, delta, low, high); }

// The shrinkage of a row and the passes it took; `count` is a multiple of 16.
int64_t shrinkage(double limit, double* magnitudes, double* rooms, int64_t count, bool exact, double* found) {
  return exact ? shrink<true>(limit, magnitudes, rooms, count, found)
               : shrink<false>(limit, magnitudes, rooms, count, found);
}
// The search told `masses` and `falling` one after the other, until it is done: where it probes.
int64_t shrinkage_told(double limit, double largest, const double* masses, const double* falling, int64_t count,
                       double* probes, bool* done) {
  ShrinkSearch search(limit, largest);
  int64_t told = 0;
  while (told < count && !search.done) {
    search.report(masses[told], falling[told]);
    probes[told++] = search.probe;
  }
  *done = search.done;
  return told;
}
// The search over a mass that jumps from `over` to 0 at `edge`, as no sum does.
int64_t shrinkage_at_a_jump(double limit, double largest, double edge, double over, double* found) {
  ShrinkSearch search(limit, largest);
  while (!search.done) search.report(search.probe < edge ? over : 0, 0);
  *found = search.probe;
  return search.passes;
}
}
