// Sums of squares over the threads of a block, in fp64.
#pragma once

#include "../rows/lanes.h"
#include "block.cuh"

namespace fastsal {

// Kahan's compensation, as in LaneSum: the error stays below the margin of an fp64 radius.
template <bool compensated>
struct Sum {
  double sum = 0, carry = 0;
  __device__ __forceinline__ void add(double v) {
    if (compensated) {
      const double y = v - carry, t = sum + y;
      carry = (t - sum) - y;
      sum = t;
    } else {
      sum += v;
    }
  }
};

// What is kept of a sum of squares between launches.
struct SquareParts {
  double middle, large, small;
};

// `wide`: for terms whose squares may be no fp64 numbers. The far ones are scaled by a power of two before they are
// squared, the large by 2^-540 and the small by 2^600, into sums of their own.
template <bool wide, bool compensated>
struct SquareSum {
  Sum<compensated> middle, large, small;

  __device__ __forceinline__ void add(double v) {
    const double magnitude = fabs(v);
    if (wide && magnitude > 0x1p480) {
      const double scaled = v * 0x1p-540;
      large.add(scaled * scaled);
    } else if (wide && magnitude < 0x1p-480) {
      const double scaled = v * 0x1p600;
      small.add(scaled * scaled);
    } else {
      middle.add(v * v);  // NaN too
    }
  }
  __device__ __forceinline__ void add(const SquareParts& parts) {
    middle.add(parts.middle);
    if (wide) large.add(parts.large);
    if (wide) small.add(parts.small);
  }

  // Of the whole block.
  __device__ __forceinline__ SquareParts total() const {
    __shared__ double lanes[kWarps];
    SquareParts parts{block_sum(middle.sum, lanes), 0, 0};
    if (wide) parts.large = block_sum(large.sum, lanes);
    if (wide) parts.small = block_sum(small.sum, lanes);
    return parts;
  }
};

// The root of a sum of squares; infinite or NaN exactly where a term was.
__device__ __forceinline__ RowNorm norm_of(const SquareParts& parts) {
  if (parts.large != 0) return {0x1p-540, sqrt(parts.large + parts.middle * 0x1p-540 * 0x1p-540)};
  if (parts.middle != 0) return {1, sqrt(parts.middle + parts.small * 0x1p-600 * 0x1p-600)};
  return {0x1p600, sqrt(parts.small)};
}

}  // namespace fastsal
