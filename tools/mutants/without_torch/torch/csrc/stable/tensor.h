// As much of torch's stable tensor as the CPU bodies use, over memory that a test owns: they compile in a second.
#pragma once

#include <cstdint>

namespace torch {
namespace headeronly {
enum class ScalarType { Float, Double, BFloat16, Half, Long, Bool };
}
namespace stable {

class Tensor {
 public:
  struct Memory {
    void* data;
    int32_t dtype, dimensions;
    int64_t sizes[5], strides[5];
  };
  explicit Tensor(const Memory* memory) : memory_(memory) {}
  void* data_ptr() const { return memory_->data; }
  int64_t dim() const { return memory_->dimensions; }
  int64_t size(int64_t d) const { return memory_->sizes[d]; }
  int64_t stride(int64_t d) const { return memory_->strides[d]; }
  headeronly::ScalarType scalar_type() const { return headeronly::ScalarType(memory_->dtype); }
  int64_t numel() const {
    int64_t count = 1;
    for (int32_t d = 0; d < memory_->dimensions; ++d) count *= memory_->sizes[d];
    return count;
  }

 private:
  const Memory* memory_;
};

}  // namespace stable
}  // namespace torch
