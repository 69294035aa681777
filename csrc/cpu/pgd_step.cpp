#include "../rows/pgd_step.h"

#include <atomic>
#include <cmath>
#include <vector>

#include "../rows/l1_step.h"

#include "bodies.h"
#include "operands.h"
#include "tiers.h"

namespace fastsal {
namespace {

constexpr int64_t kSegment = 16384;  // a Linf row is cut into segments, so that few large rows use every core

template <class T, class G, class Box>
struct Step {
  const T *x, *x_adv;
  const G* grad;
  T* next;
  bool* nonfinite;
  PerSample<T> eps, alpha;
  Index rows_, ids;
  Box box;
  RowLayout layout;
  int64_t size, segments, topk;
  std::atomic<bool>* outside;

  FASTSAL_ROW void linf(int64_t begin, int64_t end) const {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t j = task / segments, sample = ids.of(j);
      if (sample < 0) continue;
      const int64_t first = (task % segments) * kSegment, length = first + kSegment < size ? kSegment : size - first;
      const int64_t slot = rows_.of(j) * size + first;
      const StepFlags flags =
          linf_step_row(x + sample * size + first, x_adv + slot, grad + slot, next + j * size + first, length,
                        eps.of(sample), alpha.of(sample), box.from(first));
      if (flags.nonfinite) __atomic_store_n(&nonfinite[j], true, __ATOMIC_RELAXED);
      if (flags.outside) outside->store(true, std::memory_order_relaxed);
    }
  }
  FASTSAL_ROW void l2(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t sample = ids.of(j);
      if (sample < 0) continue;
      const int64_t slot = rows_.of(j) * size;
      const StepFlags flags = l2_step_row(x + sample * size, x_adv + slot, grad + slot, next + j * size, size,
                                          eps.of(sample), alpha.of(sample), box);
      nonfinite[j] = flags.nonfinite;
      if (flags.outside) outside->store(true, std::memory_order_relaxed);
    }
  }
  FASTSAL_ROW void l1(int64_t begin, int64_t end) const {
    std::vector<double> scratch(static_cast<size_t>(l1_scratch(size)));
    const auto offset = [&](int64_t i) FASTSAL_LAMBDA { return layout.offset(i); };
    const auto logical = [&](int64_t i) FASTSAL_LAMBDA { return layout.logical(i); };
    for (int64_t j = begin; j < end; ++j) {
      const int64_t sample = ids.of(j);
      if (sample < 0) continue;
      const int64_t slot = rows_.of(j) * size;
      const StepFlags flags =
          l1_step_row(x + sample * size, x_adv + slot, grad + slot, next + j * size, size, eps.of(sample),
                      alpha.of(sample), topk, box, scratch.data(), offset, logical);
      nonfinite[j] = flags.nonfinite;
      if (flags.outside) outside->store(true, std::memory_order_relaxed);
    }
  }
};

template <class Call>
struct Linf {
  Call call;
  FASTSAL_ROW void rows(int64_t begin, int64_t end) const { call.linf(begin, end); }
};
template <class Call>
struct L2 {
  Call call;
  FASTSAL_ROW void rows(int64_t begin, int64_t end) const { call.l2(begin, end); }
};
template <class Call>
struct L1 {
  Call call;
  FASTSAL_ROW void rows(int64_t begin, int64_t end) const { call.l1(begin, end); }
};

template <class T, class G, class Box>
void run(const Step<T, G, Box>& step, int64_t count, double p) {
  if (std::isinf(p))
    for_rows(count * step.segments, step.size < kSegment ? step.size : kSegment, Linf<Step<T, G, Box>>{step});
  else if (p == 2)
    for_rows(count, step.size * 3, L2<Step<T, G, Box>>{step});
  else
    for_rows(count, step.size * 16, L1<Step<T, G, Box>>{step});
}

template <class T, class G>
int64_t step_of(const Tensor& x, const Tensor& x_adv, const Tensor& grad, const Tensor& eps, const Tensor& alpha,
                const std::optional<Tensor>& clip_min, const std::optional<Tensor>& clip_max,
                const std::optional<Tensor>& rows, const std::optional<Tensor>& ids, double p, int64_t topk,
                const Tensor& next, const Tensor& nonfinite) {
  const RowLayout row(x);
  const int64_t count = next.size(0), segments = row.size == 0 ? 0 : (row.size + kSegment - 1) / kSegment;
  const PerSample<T> radius(eps), stride(alpha);
  const Index slots(rows), samples(ids);
  if (!slots.within(count, 0, x_adv.size(0)) || !samples.within(count, -1, x.size(0)) ||
      !radius.all([](T v) { return is_finite(v) && v >= 0; }, x.size(0)) ||
      !stride.all([](T v) { return is_finite(v); }, x.size(0)))
    return 1;
  std::atomic<bool> outside{false};
  bool* flags = mutable_data<bool>(nonfinite);
  for (int64_t j = 0; j < count; ++j) flags[j] = false;
  const Bounds<T> bounds(clip_min, clip_max, row);
  const auto go = [&](auto box) {
    const Step<T, G, decltype(box)> step{
        data<T>(x), data<T>(x_adv), data<G>(grad), mutable_data<T>(next), flags, radius, stride,
        slots,      samples,        box,           row,                   row.size, segments, topk, &outside};
    run(step, count, p);
  };
  if (bounds.per_element)
    go(bounds.elements());
  else
    go(bounds.uniform);
  return outside.load() ? 1 : 0;
}

}  // namespace

int64_t pgd_step(Tensor x, Tensor x_adv, Tensor grad, Tensor eps, Tensor alpha, std::optional<Tensor> clip_min,
                 std::optional<Tensor> clip_max, std::optional<Tensor> rows, std::optional<Tensor> ids, double p,
                 int64_t topk, Tensor next, Tensor nonfinite) {
  const auto call = [&](auto zero, auto gradient) {
    return step_of<decltype(zero), decltype(gradient)>(x, x_adv, grad, eps, alpha, clip_min, clip_max, rows, ids, p,
                                                       topk, next, nonfinite);
  };
  const auto with_gradient = [&](auto zero) {
    switch (grad.scalar_type()) {
      case ScalarType::Double:
        return call(zero, double());
      case ScalarType::BFloat16:
        return call(zero, bfloat16());
      case ScalarType::Half:
        return call(zero, float16());
      default:
        return call(zero, float());
    }
  };
  return x.scalar_type() == ScalarType::Double ? with_gradient(double()) : with_gradient(float());
}

}  // namespace fastsal
