// One launch. Rows that fit into the registers of their threads are read once; longer ones twice: once for the sums and
// the divergence, and once for the gradients.
#pragma once

#include "kl_divergence.h"
#include "logits.cuh"

namespace fastsal {

// 16 elements of a thread from either row, or 8 in fp64.
template <class Z>
constexpr int kDivergenceTurns = sizeof(Z) == 2 ? 2 : 4;
template <class Team>
constexpr unsigned kDivergenceThreads = Team::kMostThreads > 512 ? 512 : Team::kMostThreads;

// The sample of row j. Padding is finished here, and -1 comes back.
template <class Z, bool wide, class Team>
__device__ __forceinline__ int64_t begin_divergence(const KlDivergenceCall& call, int64_t j, const Team& team) {
  using T = typename LossOf<Z>::Type;
  const int64_t sample = sample_of(call.ids, j, call.samples);
  if (sample < 0) {
    const LongWalk<Z, wide, Team> walk(team, call.classes);
    walk.blank(static_cast<Z*>(call.adv_grad_out) + j * call.classes);
    if (call.both) walk.blank(static_cast<Z*>(call.clean_grad_out) + j * call.classes);
    if (team.thread() == 0) write(static_cast<T*>(call.loss_out) + j, T(0));
  }
  return sample;
}

template <class Z, class Team, bool wide>
__global__ void __launch_bounds__(kDivergenceThreads<Team>, 512 / kDivergenceThreads<Team>)
    kl_divergence_kernel(KlDivergenceCall call) {
  using T = typename LossOf<Z>::Type;
  constexpr int turns = kDivergenceTurns<Z>, pack = kPack<Z>;
  const Team team;
  const Walk<Z, wide> walk(team, call.classes);
  for (int64_t j = team.first_row(); j < call.count; j += team.rows_apart()) {
    const int64_t sample = begin_divergence<Z, wide>(call, j, team);
    if (sample < 0) continue;
    T p[turns][pack], q[turns][pack], apart[turns][pack];  // logits, then softmax terms; log p - log q but for the shift
    Several<T, 2> top{{-Limits<T>::infinity, -Limits<T>::infinity}};
#pragma unroll
    for (int turn = 0; turn < turns; ++turn)
      if (walk.any(turn)) {
        walk.load(static_cast<const Z*>(call.clean) + sample * call.classes, turn, p[turn]);
        walk.load(static_cast<const Z*>(call.adv) + j * call.classes, turn, q[turn]);
      }
#pragma unroll
    for (int turn = 0; turn < turns; ++turn)
      if (walk.any(turn))
#pragma unroll
        for (int e = 0; e < pack; ++e) {
          top.values[0] = p[turn][e] > top.values[0] ? p[turn][e] : top.values[0];
          top.values[1] = q[turn][e] > top.values[1] ? q[turn][e] : top.values[1];
        }
    top = reduce_each<Larger>(team, top);
    Several<T, 3> sums{};
#pragma unroll
    for (int turn = 0; turn < turns; ++turn)
      if (walk.any(turn))
#pragma unroll
        for (int e = 0; e < pack; ++e) {
          const T clean_z = p[turn][e], adv_z = q[turn][e];
          p[turn][e] = softmax_term(clean_z, top.values[0]);
          q[turn][e] = softmax_term(adv_z, top.values[1]);
          apart[turn][e] = (clean_z - top.values[0]) - (adv_z - top.values[1]);
          sums.values[0] += p[turn][e];
          sums.values[1] += q[turn][e];
          sums.values[2] += kl_term(p[turn][e], apart[turn][e], T(0), T(0), T(0));
        }
    sums = reduce_each<Add>(team, sums);
    const T clean_total = sums.values[0], adv_total = sums.values[1], shift = kl_shift(clean_total, adv_total);
    const T loss = kl_loss(sums.values[2], clean_total, shift);
    if (team.thread() == 0) write(static_cast<T*>(call.loss_out) + j, loss);
#pragma unroll
    for (int turn = 0; turn < turns; ++turn)
      if (walk.any(turn)) {
#pragma unroll
        for (int e = 0; e < pack; ++e) {
          q[turn][e] = kl_adv_slope(p[turn][e], clean_total, q[turn][e], adv_total);
          p[turn][e] = kl_clean_slope(p[turn][e], clean_total, apart[turn][e], T(0), T(0), T(0), shift, loss);
        }
        walk.save(static_cast<Z*>(call.adv_grad_out) + j * call.classes, turn, q[turn]);
        if (call.both) walk.save(static_cast<Z*>(call.clean_grad_out) + j * call.classes, turn, p[turn]);
      }
  }
}

// Sums of a clean row, relative to its largest logit so far. In fp64, and the same weights in both, so that a distance
// between the two rows' levels does not cost the divergence its digits.
template <class T>
struct DivergenceSum {
  T top = -Limits<T>::infinity, impossible = -Limits<T>::infinity;  // the largest logit of classes that adv excludes
  double total = 0, terms = 0;                                      // sum of exp(z - top), and of that times z - z_adv
  __device__ __forceinline__ void rescale(T higher) {
    const double factor = softmax_term(SoftmaxSum<T>::anchor(top), SoftmaxSum<T>::anchor(higher));
    top = higher, total *= factor, terms = weighted(factor);
  }
  __device__ __forceinline__ void add(T clean_z, T adv_z) {
    add_term(softmax_term(clean_z, SoftmaxSum<T>::anchor(top)), clean_z, adv_z);
  }
  // The same for one logit, whether it is above the top or not, given its weight_of (as in SoftmaxSum).
  __device__ __forceinline__ void add_weighted(T weight, T clean_z, T adv_z) {
    const bool rises = clean_z > top;
    if (rises) top = clean_z, total *= weight, terms = weighted(weight);
    add_term(rises ? 1 + (clean_z - clean_z) : weight, clean_z, adv_z);
  }

 private:
  // What has no weight left counts for nothing, though the difference of two fp64 logits may have been infinite.
  __device__ __forceinline__ double weighted(double factor) const {
    return sizeof(T) == 8 && factor == 0 ? 0 : terms * factor;
  }
  __device__ __forceinline__ void add_term(double term, T clean_z, T adv_z) {
    total += term;
    if (term == 0) return;
    if (adv_z == -Limits<T>::infinity)
      impossible = clean_z > impossible ? clean_z : impossible;
    else
      terms += term * (double(clean_z) - double(adv_z));
  }
};

// What the gradients of a row need, in shared memory. Read anew for each element (volatile), it holds no registers.
template <class T>
struct DivergenceRow {
  T clean_top, adv_top, impossible, clean_total, adv_total, shift, loss;
  int64_t j, clean_at, adv_at;  // the row, and where it begins in memory
};

// A row longer than the registers of a block.
template <class Z, bool wide>
__global__ void __launch_bounds__(kLongRowThreads, kLongRowBlocks) kl_divergence_long_kernel(KlDivergenceCall call) {
  using T = typename LossOf<Z>::Type;
  const BlockTeam team;
  const LongWalk<Z, wide, BlockTeam, sizeof(Z) == 8 ? 1 : 2> walk(team, call.classes);
  constexpr int few = decltype(walk)::few;
  for (int64_t j = team.first_row(); j < call.count; j += team.rows_apart()) {
    const int64_t sample = begin_divergence<Z, wide>(call, j, team);
    if (sample < 0) continue;
    __shared__ volatile DivergenceRow<T> row;
    __syncthreads();  // the row before has been read
    if (team.thread() == 0) row.j = j, row.clean_at = sample * call.classes, row.adv_at = j * call.classes;
    __syncthreads();
    const auto clean = [&] { return static_cast<const Z*>(call.clean) + row.clean_at; };
    const auto adv = [&] { return static_cast<const Z*>(call.adv) + row.adv_at; };
    DivergenceSum<T> clean_sum;
    SoftmaxSum<T> adv_sum;
    walk.read_two(clean, adv, [&](const auto& p, const auto& q) {
      if constexpr (few == 1) {
        // one exponential after the other: side by side they would need more registers than there are
#pragma unroll 1
        for (int which = 0; which < 2; ++which) {
          const T weight = adv_sum.weight_of(which ? q[0] : p[0], which ? adv_sum.top : clean_sum.top);
          which ? adv_sum.add_weighted(weight, q[0]) : clean_sum.add_weighted(weight, p[0], q[0]);
        }
      } else {
        T higher = clean_sum.top;
#pragma unroll
        for (int e = 0; e < few; ++e) higher = p[e] > higher ? p[e] : higher;
        if (higher > clean_sum.top) clean_sum.rescale(higher);
#pragma unroll
        for (int e = 0; e < few; ++e) clean_sum.add(p[e], q[e]);
        adv_sum.add(q);
      }
    });
    const Several<T, 3> tops =
        reduce_each<Larger>(team, Several<T, 3>{{clean_sum.top, adv_sum.top, clean_sum.impossible}});
    clean_sum.rescale(tops.values[0]);
    const Several<double, 3> sums = reduce_each<Add>(
        team, Several<double, 3>{{clean_sum.total, clean_sum.terms, double(adv_sum.relative_to(tops.values[1]))}});
    __shared__ volatile double mean;  // of z - z_adv over the clean row
    if (team.thread() == 0) {
      row.clean_top = tops.values[0];
      row.adv_top = tops.values[1];
      row.impossible = tops.values[2];
      row.clean_total = T(sums.values[0]);
      row.adv_total = T(sums.values[2]);
      mean = sums.values[1] / sums.values[0];
      const T shift = kl_shift(T(row.clean_total), T(row.adv_total));
      T loss = T(mean - (double(row.clean_top) - double(row.adv_top)) + double(shift));
      if (softmax_term(T(row.impossible), SoftmaxSum<T>::anchor(row.clean_top)) / row.clean_total > T(0))
        loss = Limits<T>::infinity;
      if (!(row.adv_total > T(0))) loss = Limits<T>::nan;
      row.shift = shift;
      row.loss = loss;
      write(static_cast<T*>(call.loss_out) + row.j, loss);
    }
    __syncthreads();
    const auto clean_grad = [&] { return call.both ? static_cast<Z*>(call.clean_grad_out) + row.adv_at : nullptr; };
    const auto adv_grad = [&] { return static_cast<Z*>(call.adv_grad_out) + row.adv_at; };
    walk.rewrite_two(clean, adv, clean_grad, adv_grad, [&](auto& p, auto& q) {
#pragma unroll
      for (int e = 0; e < walk.few; ++e) {
        const T clean_z = p[e], adv_z = q[e];
        const T clean_term = softmax_term(clean_z, T(row.clean_top)), adv_term = softmax_term(adv_z, T(row.adv_top));
        const T clean_total = row.clean_total;
        q[e] = kl_adv_slope(clean_term, clean_total, adv_term, T(row.adv_total));
        p[e] = kl_clean_slope(clean_term, clean_total, clean_z, T(row.clean_top), adv_z, T(row.adv_top),
                              T(row.shift), T(row.loss));
      }
    });
    j = row.j;
  }
}

}  // namespace fastsal
