// What the Call structs of the CUDA operators are made of. A Call is plain memory: raw pointers (null where the operator
// got None) and numbers. Shapes, dtypes and memory formats were checked by the contract (fastsal/operators.py).
#pragma once

#include <cstdint>

namespace fastsal {

enum class Dtype : int32_t { float32, float64, bfloat16, float16 };

}  // namespace fastsal
