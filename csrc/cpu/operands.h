// What the operator bodies read from stable tensors. Shapes, dtypes and memory formats were checked by the contract
// (fastsal/operators.py), and every operand of a call lies densely in one memory format.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "../rows/rounding.h"

namespace fastsal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}
template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data<T>(*tensor) : nullptr;
}

inline int64_t row_size(const Tensor& x) {
  int64_t size = 1;
  for (int64_t d = 1; d < x.dim(); ++d) size *= x.size(d);
  return size;
}

// A per-sample value: (1,) for all samples, or one each.
template <class T>
struct PerSample {
  const T* values;
  bool shared;
  explicit PerSample(const Tensor& tensor) : values(data<T>(tensor)), shared(tensor.size(0) == 1) {}
  T of(int64_t sample) const { return values[shared ? 0 : sample]; }
  template <class Accept>
  bool all(Accept accept, int64_t count) const {
    for (int64_t i = 0; i < (shared ? 1 : count); ++i)
      if (!accept(values[i])) return false;
    return true;
  }
};

// An index vector, or 0, 1, 2, ... where there is none.
struct Index {
  const int64_t* values;
  explicit Index(const std::optional<Tensor>& tensor) : values(data<int64_t>(tensor)) {}
  int64_t of(int64_t j) const { return values ? values[j] : j; }
  bool within(int64_t count, int64_t low, int64_t high) const {
    if (values)
      for (int64_t j = 0; j < count; ++j)
        if (values[j] < low || values[j] >= high) return false;
    return true;
  }
};

// How the elements of a row lie in memory: channel by channel, or all channels of a place together.
struct RowLayout {
  int64_t size, channels, places;
  bool channels_last;
  explicit RowLayout(const Tensor& x) : size(row_size(x)) {
    channels = x.dim() > 1 ? x.size(1) : 1;
    places = channels > 0 ? size / channels : 0;
    channels_last = x.dim() > 2 && channels > 1 && places > 1 && x.stride(1) == 1;
  }
  // Row-major index of the element at `offset` in memory.
  int64_t logical(int64_t offset) const {
    return channels_last ? (offset % channels) * places + offset / channels : offset;
  }
  // Where in memory the element with a row-major index lies.
  int64_t offset(int64_t logical) const {
    return channels_last ? (logical % places) * channels + logical / places : logical;
  }
  int64_t channel(int64_t offset) const { return channels_last ? offset % channels : offset / places; }
};

// The box of a call: two numbers, or one pair per element when bounds differ by channel. An infinite bound is none.
template <class T>
class Bounds {
 public:
  Bounds(const std::optional<Tensor>& clip_min, const std::optional<Tensor>& clip_max, const RowLayout& row) {
    const T largest = Limits<T>::largest;
    const auto low = [&](T v) { return v < -largest ? -largest : v; };
    const auto high = [&](T v) { return v > largest ? largest : v; };
    uniform = {is_shared(clip_min) ? low(data<T>(clip_min)[0]) : -largest,
               is_shared(clip_max) ? high(data<T>(clip_max)[0]) : largest};
    per_element = spread(clip_min, low, row, low_) | spread(clip_max, high, row, high_);
    if (!per_element) return;
    if (low_.empty()) low_.assign(row.size, uniform.low_);
    if (high_.empty()) high_.assign(row.size, uniform.high_);
  }
  UniformBox<T> uniform;
  bool per_element = false;
  ElementBox<T> elements() const { return {low_.data(), high_.data()}; }

 private:
  static bool is_shared(const std::optional<Tensor>& bound) { return bound && bound->size(0) == 1; }
  template <class Finite>
  static bool spread(const std::optional<Tensor>& bound, Finite finite, const RowLayout& row, std::vector<T>& out) {
    if (!bound || is_shared(bound)) return false;
    out.resize(row.size);
    for (int64_t i = 0; i < row.size; ++i) out[i] = finite(data<T>(bound)[row.channel(i)]);
    return true;
  }
  std::vector<T> low_, high_;
};

}  // namespace fastsal
