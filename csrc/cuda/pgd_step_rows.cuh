// What the steps of all norms share: which row a block works on, and its elements of x, x_adv and the gradient.
#pragma once

#include "pgd_step.h"
#include "rows.cuh"

namespace fastsal {

struct StepRow {
  int64_t sample, slot;
  bool real;  // false: padding, or an index that is none
  __device__ __forceinline__ StepRow(int64_t sample_, int64_t slot_) : sample(sample_), slot(slot_), real(true) {}
  __device__ __forceinline__ StepRow(const PgdStepCall& call, int64_t j)
      : sample(call.ids ? call.ids[j] : j), slot(call.rows ? call.rows[j] : j),
        real(sample >= 0 && sample < call.samples && slot >= 0 && slot < call.points) {}
};

// A gradient of type G. An fp64 x takes gradients of every type through AnyGradient.
template <class G>
struct Gradient {
  using Value = decltype(value(G()));
  const G* values;
  __device__ __forceinline__ Gradient(const PgdStepCall& call, int64_t first)
      : values(static_cast<const G*>(call.grad) + first) {}
  template <int count, class Index>
  __device__ __forceinline__ Group<Value, count> get(Index i) const {
    const Group<G, count> group = read_group<G, count>(values + i);
    Group<Value, count> out;
#pragma unroll
    for (int v = 0; v < count; ++v) out.values[v] = value(group.values[v]);
    return out;
  }
};

struct AnyGradient {
  using Value = double;
};
template <>
struct Gradient<AnyGradient> {
  using Value = double;
  int64_t first;  // as that of x_adv: one number for both
  const PgdStepCall& call;
  __device__ __forceinline__ Gradient(const PgdStepCall& call_, int64_t first_) : first(first_), call(call_) {}
  template <int count, class Index>
  __device__ __forceinline__ Group<double, count> get(Index i) const {
    switch (call.grad_dtype) {
      case Dtype::float64:
        return widened<double, count>(i);
      case Dtype::bfloat16:
        return widened<bfloat16, count>(i);
      case Dtype::float16:
        return widened<float16, count>(i);
      default:
        return widened<float, count>(i);
    }
  }

 private:
  template <class G, int count, class Index>
  __device__ __forceinline__ Group<double, count> widened(Index i) const {
    const Group<G, count> group = read_group<G, count>(static_cast<const G*>(call.grad) + opaque(first + i));
    Group<double, count> out;
#pragma unroll
    for (int v = 0; v < count; ++v) out.values[v] = double(value(group.values[v]));
    return out;
  }
};

// `length` elements of a row, from `first` on, read anew in each pass.
template <class T, class G>
struct StepSegment {
  static constexpr int group = kGroup<T>;
  using Point = T;
  using Slope = G;
  using Value = typename Gradient<G>::Value;
  Box<T, PgdStepCall> box;  // made before the pointers, so that they hold no registers meanwhile
  const T *x, *x_adv;
  Gradient<G> grad;
  T* next;
  int64_t first;
  int length;
  bool vector;

  // This thread's elements in one turn. Beyond the end: zeros, which add to no sum.
  struct Elements {
    T clean[group], here[group];
    Value slope[group];
  };

  __device__ __forceinline__ StepSegment(const PgdStepCall& call, const StepRow& row, int64_t j, int64_t first_,
                                         int length_, bool vector_)
      : box(call, first_, length_), x(static_cast<const T*>(call.x) + row.sample * call.size + first_),
        x_adv(static_cast<const T*>(call.x_adv) + row.slot * call.size + first_),
        grad(call, row.slot * call.size + first_), next(static_cast<T*>(call.next_out) + j * call.size + first_),
        first(first_), length(length_), vector(vector_) {}

  __device__ __forceinline__ bool any(int k) const { return k * int(blockDim.x) * group < length; }
  // Where element v of this thread's group lies in turn k, seen from `first`.
  __device__ __forceinline__ int at(int k, int v) const { return element_at<group>(k, v, vector); }

  __device__ __forceinline__ void load_points(int k, Elements& to) const {
    if (vector) {
      Group<T, group> clean{}, here{};
      if (at(k, 0) < length) {
        clean = read_group<T, group>(x + at(k, 0));
        here = read_group<T, group>(x_adv + at(k, 0));
      }
#pragma unroll
      for (int v = 0; v < group; ++v) {
        to.clean[v] = clean.values[v];
        to.here[v] = here.values[v];
      }
    } else {
#pragma unroll
      for (int v = 0; v < group; ++v) {
        const bool there = at(k, v) < length;
        to.clean[v] = there ? read(x + at(k, v)) : T(0);
        to.here[v] = there ? read(x_adv + at(k, v)) : T(0);
      }
    }
  }
  __device__ __forceinline__ void load_slopes(int k, Elements& to) const {
    if (vector) {
      Group<Value, group> slope{};
      if (at(k, 0) < length) slope = grad.template get<group>(at(k, 0));
#pragma unroll
      for (int v = 0; v < group; ++v) to.slope[v] = slope.values[v];
    } else {
#pragma unroll
      for (int v = 0; v < group; ++v)
        to.slope[v] = at(k, v) < length ? grad.template get<1>(at(k, v)).values[0] : Value(0);
    }
  }
  __device__ __forceinline__ void save(int k, const Group<T, group>& from) const { save_to(next, k, from); }
  __device__ __forceinline__ void save_to(T* segment, int k, const Group<T, group>& from) const {
    if (vector) {
      if (at(k, 0) < length) write_group<T, group>(segment + at(k, 0), from);
    } else {
#pragma unroll
      for (int v = 0; v < group; ++v)
        if (at(k, v) < length) write(segment + at(k, v), from.values[v]);
    }
  }

  // body(k, elements) for each turn; or with no more than the slopes read
  template <class Body>
  __device__ __forceinline__ void each(Body body) const {
#pragma unroll 1
    for (int k = 0; any(k); ++k) {
      Elements elements;
      load_points(k, elements);
      load_slopes(k, elements);
      body(k, elements);
    }
  }
  template <class Body>
  __device__ __forceinline__ void each_slope(Body body) const {
#pragma unroll 1
    for (int k = 0; any(k); ++k) {
      Elements elements;
      load_slopes(k, elements);
      body(k, elements);
    }
  }
};

// run(Types<T, G>()) for the types of a call
template <class T_, class G_>
struct Types {
  using T = T_;
  using G = G_;
};
template <class Run>
void with_step_types(const PgdStepCall& call, Run run) {
  if (call.x_dtype == Dtype::float64) return run(Types<double, AnyGradient>());
  switch (call.grad_dtype) {
    case Dtype::float64:
      return run(Types<float, double>());
    case Dtype::bfloat16:
      return run(Types<float, bfloat16>());
    case Dtype::float16:
      return run(Types<float, float16>());
    default:
      return run(Types<float, float>());
  }
}

// A row held in registers: its block, and how many turns it may take. Few of them leave room for more blocks, many for
// longer rows.
constexpr unsigned kHeldThreads = 512;
constexpr int kFewTurns = 2, kManyTurns = 6;

inline int64_t groups_of(const PgdStepCall& call) {
  const int64_t group = call.x_dtype == Dtype::float64 ? kGroup<double> : kGroup<float>;
  return (call.size + group - 1) / group;
}

inline bool on_chip(const PgdStepCall& call, int turns) {
  return groups_of(call) <= int64_t(turns) * threads(kHeldThreads);
}

// Whether groups can move in one access.
inline bool vector_rows(const PgdStepCall& call) {
  const int64_t width = call.x_dtype == Dtype::float64 ? 8 : 4;
  return rows_on_16_bytes(call.size * width, call.x, call.x_adv, call.next_out, call.grad);
}

}  // namespace fastsal
