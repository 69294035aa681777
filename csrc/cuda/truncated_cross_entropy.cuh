// One launch. A row that fits into the registers of its threads is read once; a longer one twice: once for the largest
// logit and the sum of exponentials, together, and once for the gradient.
#pragma once

#include "logits.cuh"
#include "truncated_cross_entropy.h"

namespace fastsal {

// 32 elements of a thread, or 16 in fp64, where a warp has a row: no thread waits for another warp. Half as many where a
// block has it.
template <class Z, class Team>
constexpr int kEntropyTurns = (sizeof(Z) == 2 ? 2 : 4) * (Team::kMostThreads > 128 ? 1 : 2);
// So many on a multiprocessor that a thread has 96 registers, or 64.
template <class Team>
constexpr unsigned kEntropyBlocks = Team::kMostThreads > 128 ? 1 : 5;

// The label of row j. Padding and rows whose label names no class are finished here, and -1 comes back.
template <class Z, bool wide, class Team>
__device__ __forceinline__ int begin_entropy(const TruncatedCrossEntropyCall& call, int64_t j, const Team& team) {
  using T = typename LossOf<Z>::Type;
  const int64_t sample = sample_of(call.ids, j, call.samples);
  const int label = sample < 0 ? -1 : label_of(call.target, sample, call.classes);
  if (label < 0) {
    Walk<Z, wide>(team, call.classes).blank(static_cast<Z*>(call.grad_out) + j * call.classes);
    if (team.thread() == 0) {
      write(static_cast<T*>(call.loss_out) + j, sample < 0 ? T(0) : T(Limits<T>::nan));
      write(call.right_out + j, false);
      write(call.over_out + j, true);
    }
  }
  return label;
}

// Why class `label` is not the answer although its logit is the largest: a NaN, or an equal one of lower index.
template <class T>
__device__ __forceinline__ bool spoils(T z, int at, T top, int label) {
  return z != z || (z == top && at < label);
}

// Loss and flags of row j, by one thread.
template <class Z, class T>
__device__ __forceinline__ void end_entropy(const TruncatedCrossEntropyCall& call, int64_t j, int label, T top, T total,
                                            bool spoiled) {
  const T own = T(value(static_cast<const Z*>(call.logits)[j * call.classes + label]));
  const T loss = cross_entropy_loss(total, own, top);
  write(static_cast<T*>(call.loss_out) + j, loss);
  write(call.right_out + j, own == top && !spoiled);
  write(call.over_out + j, is_over(loss, T(call.cut)));
}

template <class Z, class Team, bool wide>
__global__ void __launch_bounds__(Team::kMostThreads, kEntropyBlocks<Team>)
    truncated_cross_entropy_kernel(TruncatedCrossEntropyCall call) {
  using T = typename LossOf<Z>::Type;
  constexpr int turns = kEntropyTurns<Z, Team>, pack = kPack<Z>;
  const Team team;
  const Walk<Z, wide> walk(team, call.classes);
  for (int64_t j = team.first_row(); j < call.count; j += team.rows_apart()) {
    const int label = begin_entropy<Z, wide>(call, j, team);
    if (label < 0) continue;
    const Z* logits = static_cast<const Z*>(call.logits) + j * call.classes;
    Z* grad = static_cast<Z*>(call.grad_out) + j * call.classes;
    T z[turns][pack];
#pragma unroll
    for (int turn = 0; turn < turns; ++turn)
      if (walk.any(turn)) walk.load(logits, turn, z[turn]);
    T top = -Limits<T>::infinity;
#pragma unroll
    for (int turn = 0; turn < turns; ++turn)
      if (walk.any(turn))
#pragma unroll
        for (int e = 0; e < pack; ++e) top = z[turn][e] > top ? z[turn][e] : top;
    top = team_max(team, top);
    T total = 0;
    bool spoiled = false;
#pragma unroll
    for (int turn = 0; turn < turns; ++turn)
      if (walk.any(turn))
#pragma unroll
        for (int e = 0; e < pack; ++e) {
          spoiled |= spoils(z[turn][e], walk.at(turn, e), top, label);
          z[turn][e] = softmax_term(z[turn][e], top);
          total += z[turn][e];
        }
    total = team_sum(team, total);
    spoiled = team.any(spoiled);
    if (team.thread() == 0) end_entropy<Z>(call, j, label, top, total, spoiled);
#pragma unroll
    for (int turn = 0; turn < turns; ++turn)
      if (walk.any(turn)) {
#pragma unroll
        for (int e = 0; e < pack; ++e)
          z[turn][e] = cross_entropy_slope(z[turn][e], total, walk.at(turn, e) == label);
        walk.save(grad, turn, z[turn]);
      }
  }
}

// A row longer than the registers of a block.
template <class Z, bool wide>
__global__ void __launch_bounds__(kLongRowThreads, kLongRowBlocks)
    truncated_cross_entropy_long_kernel(TruncatedCrossEntropyCall call) {
  using T = typename LossOf<Z>::Type;
  const BlockTeam team;
  const LongWalk<Z, wide, BlockTeam> walk(team, call.classes);
  for (int64_t j = team.first_row(); j < call.count; j += team.rows_apart()) {
    const int label = begin_entropy<Z, wide>(call, j, team);
    if (label < 0) continue;
    const Z* logits = static_cast<const Z*>(call.logits) + j * call.classes;
    SoftmaxSum<T> sum;
    walk.read(logits, [&](const auto& z, int, int) { sum.add(z); });
    const T top = team_max(team, sum.top), total = team_sum(team, sum.relative_to(top));
    bool spoiled = false;
    walk.rewrite(logits, static_cast<Z*>(call.grad_out) + j * call.classes, [&](auto& z, int at, int step) {
#pragma unroll
      for (int e = 0; e < walk.few; ++e) {
        spoiled |= spoils(z[e], at + e * step, top, label);
        z[e] = cross_entropy_slope(softmax_term(z[e], top), total, at + e * step == label);
      }
    });
    spoiled = team.any(spoiled);
    if (team.thread() == 0) end_entropy<Z>(call, j, label, top, total, spoiled);
  }
}

}  // namespace fastsal
