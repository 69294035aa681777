// One launch, and one read of a row whatever its length: what matters of it are its few largest logits.
#pragma once

#include "logits.cuh"
#include "margin_loss.h"

namespace fastsal {

// The largest logits of those met so far, in the order of a stable descending sort: NaN before anything, the lower index
// before its equals. Places not taken hold an index beyond every row.
template <class T, int count>
struct Leaders {
  T values[count];
  int indices[count];
  __device__ __forceinline__ Leaders() {
#pragma unroll
    for (int k = 0; k < count; ++k) values[k] = -Limits<T>::infinity, indices[k] = kNone;
  }
  // Indices come in ascending: an equal one stands behind, but before places not taken.
  __device__ __forceinline__ void meet(T z, int at) {
    if (!before(z, count - 1)) return;
#pragma unroll
    for (int k = count - 1; k >= 0; --k) {
      if (!before(z, k)) continue;
      if (k + 1 < count) values[k + 1] = values[k], indices[k + 1] = indices[k];
      values[k] = z, indices[k] = at;
    }
  }
  // The leaders of all the team's threads together.
  template <class Team>
  __device__ __forceinline__ Leaders of(const Team& team) {
    Leaders all;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const Indexed<T> best = team_best(team, Indexed<T>{values[0], indices[0]});
      all.values[k] = best.value, all.indices[k] = best.index;
      if (best.index != indices[0]) continue;
#pragma unroll
      for (int i = 1; i < count; ++i) values[i - 1] = values[i], indices[i - 1] = indices[i];
      values[count - 1] = -Limits<T>::infinity, indices[count - 1] = kNone;
    }
    return all;
  }

 private:
  static constexpr int kNone = 0x7fffffff;
  __device__ __forceinline__ bool before(T z, int k) const {
    if (indices[k] == kNone) return true;
    return z != z ? values[k] == values[k] : z > values[k];
  }
};

// Of a block; and how many blocks a multiprocessor holds, for three quarters of its threads.
template <class Team>
constexpr unsigned kMarginThreads = Team::kMostThreads < kLongRowThreads ? Team::kMostThreads : kLongRowThreads;
template <class Team>
constexpr unsigned kMarginBlocks = kLongRowBlocks * kLongRowThreads / kMarginThreads<Team>;

constexpr int kMarginLeaders = 2, kDlrLeaders = 4;

template <class Z, class Team, int count, bool wide>
__global__ void __launch_bounds__(kMarginThreads<Team>, kMarginBlocks<Team>) margin_loss_kernel(MarginLossCall call) {
  using T = typename LossOf<Z>::Type;
  constexpr bool dlr = count == kDlrLeaders;
  const Team team;
  const LongWalk<Z, wide, Team> walk(team, call.classes);
  for (int64_t j = team.first_row(); j < call.count; j += team.rows_apart()) {
    // made where they are needed, these hold no registers in between
    const auto logits = [&] { return static_cast<const Z*>(call.logits) + opaque(j) * call.classes; };
    const auto grad = [&] { return static_cast<Z*>(call.grad_out) + opaque(j) * call.classes; };
    const int64_t sample = sample_of(call.ids, j, call.samples);
    const int label = sample < 0 ? -1 : label_of(call.target, sample, call.classes);
    int other = sample < 0 || !call.other ? 0 : label_of(call.other, sample, call.classes);
    if (label < 0 || other < 0) {
      walk.blank(grad());
      if (team.thread() == 0) write(static_cast<T*>(call.loss_out) + j, sample < 0 ? T(0) : T(Limits<T>::nan));
      continue;
    }
    Leaders<T, count> top;
    if (dlr || !call.other) {
      walk.read(logits(), [&](const auto& z, int at, int step) {
#pragma unroll
        for (int e = 0; e < walk.few; ++e)
          if (at + e * step < call.classes) top.meet(z[e], at + e * step);
      });
      top = top.of(team);
      if (!call.other) other = top.indices[0] == label ? top.indices[1] : top.indices[0];
    }
    T loss = T(value(logits()[other])) - T(value(logits()[label])), spread = 1;
    if (dlr) {
      spread = call.other ? dlr_targeted_spread(top.values[0], top.values[2 % count], top.values[count - 1])
                          : dlr_spread(top.values[0], top.values[2 % count]);
      loss = loss / spread;
    }
    if (team.thread() == 0) write(static_cast<T*>(call.loss_out) + j, loss);
    // without a target the third counts for both, which comes to the same
    const int fourth = call.other ? top.indices[count - 1] : top.indices[2 % count];
    const T elsewhere = dlr ? dlr_slope(T(0), loss, T(0), spread) : T(0);
    walk.write(grad(), [&](int i) {
      if (!dlr) return margin_slope<T>(i, label, other);
      const bool leads = i == top.indices[0] || i == top.indices[2 % count] || i == fourth;
      if (!leads && i != label && i != other) return elsewhere;
      const T slope = dlr_targeted_spread_slope<T>(i, top.indices[0], top.indices[2 % count], fourth);
      return dlr_slope(margin_slope<T>(i, label, other), loss, slope, spread);
    });
  }
}

}  // namespace fastsal
