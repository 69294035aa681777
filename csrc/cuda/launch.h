// The one way in which a kernel is launched: by nvcc's <<<>>>, with the launch checked; or, without nvcc, on the emulator
// (tests/emulator/cuda_on_cpu.h, included from the command line).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

// All dynamic shared memory of a kernel, as an array of `type`.
#define FASTSAL_DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(dynamic_shared)
#endif

namespace fastsal {

constexpr int64_t kMaxBlocks = 0x7fffffff;  // of gridDim.x

// Blocks for `tasks` tasks. A kernel loops over them: `for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x)`.
inline unsigned blocks_for(int64_t tasks) { return unsigned(tasks < kMaxBlocks ? tasks : kMaxBlocks); }

#if defined(__CUDACC__)

// Threads of a block; a test may ask the emulator for fewer.
inline unsigned threads(unsigned usual) { return usual; }
// Blocks in one dimension of a grid; a test may ask for fewer.
inline int64_t grid_limit(int64_t usual) { return usual; }

inline void check(const char* kernel, cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error("fastsal: CUDA kernel " + std::string(kernel) + ": " + cudaGetErrorString(status));
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned block_threads,
            size_t dynamic_shared, void* stream, const Arguments&... arguments) {
  if (dynamic_shared > 48 * 1024)  // more than a kernel gets without asking
    check(name, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     int(dynamic_shared)));
  kernel<<<grid, block_threads, dynamic_shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(name, cudaGetLastError());
}

#else

inline unsigned threads(unsigned usual) {
  const unsigned asked = emulator::machine().block_threads;
  return asked && asked < usual ? asked : usual;
}
inline int64_t grid_limit(int64_t usual) {
  const int64_t asked = emulator::machine().grid_limit;
  return asked ? asked : usual;
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned block_threads,
            size_t dynamic_shared, void*, const Arguments&... arguments) {
  emulator::launch(name, grid, block_threads, dynamic_shared, [=] { kernel(arguments...); });
}

#endif

// A block for each segment of each row, in one launch wherever a grid has room for them: calls
// body(first_row, first_segment, grid).
template <class Body>
void for_each_grid(int64_t rows, int64_t segments, Body body) {
  const int64_t most_x = grid_limit(kMaxBlocks), most_y = grid_limit(65535);
  for (int64_t row = 0; row < rows; row += most_x)
    for (int64_t segment = 0; segment < segments; segment += most_y)
      body(row, segment,
           dim3(unsigned(rows - row < most_x ? rows - row : most_x),
                unsigned(segments - segment < most_y ? segments - segment : most_y)));
}

}  // namespace fastsal
