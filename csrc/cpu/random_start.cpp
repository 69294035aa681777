#include "../rows/random_start.h"

#include <atomic>
#include <cmath>
#include <vector>

#include "bodies.h"
#include "operands.h"
#include "tiers.h"

namespace fastsal {
namespace {

constexpr int64_t kChunk = 4 * kBlocks;  // elements whose words are made at a time

template <class T, class Box>
struct Start {
  const T* x;
  T* out;
  PerSample<T> eps;
  uint64_t seed;
  Index sample_ids, ids;
  Box box;
  RowLayout layout;
  double p;
  std::atomic<bool>* outside;

  FASTSAL_ROW void rows(int64_t begin, int64_t end) const {
    const bool linf = std::isinf(p);
    std::vector<uint32_t> scattered(linf && layout.channels_last ? layout.size : 0);
    std::vector<double> noise(linf ? 0 : 2 * layout.size);
    for (int64_t j = begin; j < end; ++j) {
      const int64_t sample = ids.of(j);
      if (sample < 0) continue;
      const uint64_t key = uint64_t(sample_ids.of(sample));
      const T *clean = x + sample * layout.size;
      T* start = out + j * layout.size;
      const bool inside = linf ? linf_row(clean, start, key, eps.of(sample), scattered.data())
                               : scaled_row(clean, start, key, eps.of(sample), noise.data());
      if (!inside) outside->store(true, std::memory_order_relaxed);
    }
  }

  FASTSAL_ROW bool linf_row(const T* clean, T* start, uint64_t key, T radius, uint32_t* scattered) const {
    uint32_t words[kChunk];
    bool inside = true;
    for (int64_t first = 0; first < layout.size; first += kChunk) {
      const int64_t length = first + kChunk < layout.size ? kChunk : layout.size - first;
      philox(seed, key, uint64_t(first) / 4, words);
      if (layout.channels_last) {
        for (int64_t i = 0; i < length; ++i) scattered[layout.offset(first + i)] = words[i];
      } else {
        inside &= linf_start<T>(clean + first, start + first, words, length, radius, box.from(first));
      }
    }
    return layout.channels_last ? linf_start<T>(clean, start, scattered, layout.size, radius, box) : inside;
  }

  // L2 and L1: noise in row-major order, its length, then the row
  FASTSAL_ROW bool scaled_row(const T* clean, T* start, uint64_t key, T radius, double* noise) const {
    uint32_t words[kChunk];
    double chunk[kChunk];
    double* in_order = noise + layout.size;
    for (int64_t first = 0; first < layout.size; first += kChunk) {
      const int64_t length = first + kChunk < layout.size ? kChunk : layout.size - first;
      philox(seed, key, uint64_t(first) / 4, words);
      if (p == 2)
        normals(words, chunk);
      else
        signed_exponentials(words, chunk);
      for (int64_t i = 0; i < length; ++i) {
        in_order[first + i] = chunk[i];
        noise[layout.offset(first + i)] = chunk[i];
      }
    }
    philox(seed, key, kRadiusBlock, words);  // only the first word counts
    // the length is taken in row-major order, so that a memory format does not change a bit of it
    const double scale = p == 2 ? l2_reach(words[0], layout.size) / lane_norm<false>(layout.size, Values{in_order})
                                : 1 / (lane_sum<true>(layout.size, Magnitudes{in_order}) + exponential(words[0]));
    return scaled_start<T>(clean, start, noise, layout.size, scale * inner_radius(radius), box);
  }

  struct Values {
    const double* values;
    FASTSAL_ROW double operator()(int64_t i) const { return values[i]; }
  };
  struct Magnitudes {
    const double* values;
    FASTSAL_ROW double operator()(int64_t i) const { return std::fabs(values[i]); }
  };
};

template <class T>
int64_t start_of(const Tensor& x, const Tensor& eps, const Tensor& seed, const std::optional<Tensor>& sample_ids,
                 const std::optional<Tensor>& clip_min, const std::optional<Tensor>& clip_max,
                 const std::optional<Tensor>& ids, double p, const Tensor& start) {
  const RowLayout layout(x);
  const int64_t count = start.size(0);
  const PerSample<T> radius(eps);
  const Index samples(ids);
  if (!samples.within(count, -1, x.size(0)) ||
      !radius.all([](T v) { return is_finite(v) && v >= 0; }, x.size(0)))
    return 1;
  std::atomic<bool> outside{false};
  const Bounds<T> bounds(clip_min, clip_max, layout);
  const auto go = [&](auto box) {
    const Start<T, decltype(box)> body{data<T>(x),
                                       mutable_data<T>(start),
                                       radius,
                                       uint64_t(data<int64_t>(seed)[0]),
                                       Index(sample_ids),
                                       samples,
                                       box,
                                       layout,
                                       p,
                                       &outside};
    for_rows(count, layout.size * (std::isinf(p) ? 4 : 32), body);
  };
  if (layout.size > 0) bounds.per_element ? go(bounds.elements()) : go(bounds.uniform);
  return outside.load() ? 1 : 0;
}

}  // namespace

int64_t random_start(Tensor x, Tensor eps, Tensor seed, std::optional<Tensor> sample_ids,
                     std::optional<Tensor> clip_min, std::optional<Tensor> clip_max, std::optional<Tensor> ids,
                     double p, Tensor start) {
  return x.scalar_type() == ScalarType::Double
             ? start_of<double>(x, eps, seed, sample_ids, clip_min, clip_max, ids, p, start)
             : start_of<float>(x, eps, seed, sample_ids, clip_min, clip_max, ids, p, start);
}

}  // namespace fastsal
