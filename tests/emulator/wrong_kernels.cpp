// Kernels with one mistake each, and their right twins: what the emulator must see. Compiled by tests/test_emulator.py.
#include "cuda/block.cuh"

namespace {

using fastsal::kAllLanes;
using fastsal::launch;

// Reverses the threads of a block through shared memory.
__global__ void reverse(float* out, bool barrier) {
  __shared__ float held[256];
  held[threadIdx.x] = float(threadIdx.x);
  if (barrier) __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = held[blockDim.x - 1 - threadIdx.x];
}

// What a block finds in shared memory that nobody wrote.
__global__ void unwritten(float* out, bool dynamic) {
  __shared__ float held[32];
  FASTSAL_DYNAMIC_SHARED(float, more);
  out[blockIdx.x * blockDim.x + threadIdx.x] = dynamic ? more[threadIdx.x] : held[threadIdx.x];
  held[threadIdx.x] = more[threadIdx.x] = 1;
}

// kind 0: right; 1: half of the block goes without a barrier; 2: two halves at two barriers
__global__ void barriers(float* out, int kind) {
  if (kind == 0) __syncthreads();
  if (kind == 1 && threadIdx.x < blockDim.x / 2) __syncthreads();
  if (kind == 2) {
    if (threadIdx.x < blockDim.x / 2)
      __syncthreads();
    else
      __syncthreads();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

// kind 0: right; 1: a lane has gone; 2: the caller is not named; 3: reads from a lane that is not named; 4: two masks in
// one warp; 5: a lane waits at a barrier
__global__ void shuffles(float* out, int kind) {
  const unsigned lane = threadIdx.x % 32;
  float v = float(lane);
  if (kind == 1 && lane == 7) return;
  if (kind == 5 && lane == 7) __syncthreads();
  if (kind == 2)
    v = __shfl_sync(0xffff0000u, v, 20);
  else if (kind == 3)
    v = lane < 16 ? __shfl_sync(0xffffu, v, 20) : __shfl_sync(0xffff0000u, v, 20);
  else if (kind == 4)
    v = __shfl_sync(lane < 16 ? kAllLanes : 0xffff0001u, v, 20);
  else
    v = __shfl_sync(kAllLanes, v, 20);
  out[blockIdx.x * blockDim.x + threadIdx.x] = v;
}

// Half warps that shuffle apart from one another: allowed.
__global__ void half_warps(float* out) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned mask = lane < 16 ? 0xffffu : 0xffff0000u;
  float v = float(lane);
  for (int d = 8; d > 0; d /= 2) v += __shfl_xor_sync(mask, v, d);
  out[blockIdx.x * blockDim.x + threadIdx.x] = v;
}

// The order in which threads come along: out[i] is the i-th to arrive.
__global__ void arrivals(float* out, float* counter) {
  out[int(atomicAdd(counter, 1.0f))] = float(blockIdx.x * blockDim.x + threadIdx.x);
  __syncthreads();
  out[int(atomicAdd(counter, 1.0f))] = float(blockIdx.x * blockDim.x + threadIdx.x);
}

// Every intrinsic: each thread checks it against what it must give, and counts mistakes.
__global__ void intrinsics(float* out) {
  const int t = int(threadIdx.x), lane = t % 32, block = int(blockDim.x);
  int wrong = 0;
  wrong += __shfl_sync(kAllLanes, t, 5) != t - lane + 5;
  wrong += __shfl_sync(kAllLanes, t, 3, 8) != t - lane % 8 + 3;
  wrong += __shfl_up_sync(kAllLanes, t, 2) != (lane < 2 ? t : t - 2);
  wrong += __shfl_down_sync(kAllLanes, t, 2) != (lane > 29 ? t : t + 2);
  wrong += __shfl_down_sync(kAllLanes, t, 1, 4) != (lane % 4 == 3 ? t : t + 1);
  wrong += __shfl_xor_sync(kAllLanes, 0.5 * t, 9) != 0.5 * (t ^ 9);
  wrong += __ballot_sync(kAllLanes, lane % 3 == 0) != 0x49249249u;
  wrong += (__any_sync(kAllLanes, lane == 9) != 0) != true;
  wrong += (__any_sync(kAllLanes, lane == 32) != 0) != false;
  wrong += (__all_sync(kAllLanes, lane < 32) != 0) != true;
  wrong += (__all_sync(kAllLanes, lane != 4) != 0) != false;
  __syncwarp();
  wrong += (__syncthreads_or(t == block - 1) != 0) != true;
  wrong += (__syncthreads_or(t == block) != 0) != false;
  wrong += (__syncthreads_and(t < block) != 0) != true;
  wrong += (__syncthreads_and(t != 0) != 0) != false;
  wrong += __syncthreads_count(t % 2) != block / 2;
  out[blockIdx.x * blockDim.x + threadIdx.x] = float(wrong);
}

// The functions of block.cuh, each used twice in a row on the same memory: mistakes counted.
__global__ void block_functions(float* out) {
  __shared__ double sums[fastsal::kWarps];
  __shared__ fastsal::Indexed<float> bests[fastsal::kWarps];
  __shared__ unsigned scans[fastsal::kWarps];
  const int t = int(threadIdx.x), block = int(blockDim.x);
  const float nan = fastsal::Limits<float>::nan;
  int wrong = 0;
  for (int turn = 1; turn < 3; ++turn) {
    wrong += fastsal::block_sum(double(t * turn), sums) != 0.5 * block * (block - 1) * turn;
    wrong += fastsal::block_max(double((t * 7 + turn) % block), sums) != block - 1;
    wrong += fastsal::block_any(t == block - turn) != true;
    wrong += fastsal::block_any(t == block) != false;
    const auto tied = fastsal::block_best<float>({t % 5 == 4 - turn ? 2.0f : 1.0f, t}, bests);
    wrong += tied.value != 2 || tied.index != 4 - turn;
    const auto lost = fastsal::block_best<float>({t == 9 || t == 17 + turn ? nan : 3.0f, t}, bests);
    wrong += lost.value == lost.value || lost.index != 9;
    const fastsal::Scan scan = fastsal::block_exclusive_scan(unsigned(turn + t % 3), scans);
    int before = 0, total = 0;
    for (int i = 0; i < block; ++i) {
      before += i < t ? turn + i % 3 : 0;
      total += turn + i % 3;
    }
    wrong += int(scan.before) != before || int(scan.total) != total;
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = float(wrong);
}

// kind 1: past the end of a static array; 2: past the end of dynamic memory
__global__ void beyond(float* out, int kind) {
  __shared__ float held[32];
  FASTSAL_DYNAMIC_SHARED(float, more);
  const unsigned last = kind == 0 ? 31 : 32;
  held[threadIdx.x] = more[threadIdx.x] = 1;
  if (kind == 2)
    out[threadIdx.x] = more[last];
  else
    out[threadIdx.x] = held[last];
}

__global__ void reads(float* out, const float* from, int offset) {
  emulator::touched(reinterpret_cast<const float*>(reinterpret_cast<const char*>(from) + offset), false);
  out[threadIdx.x] = from[0];
}

}  // namespace

extern "C" const char* run_wrong(const char* kernel, int kind, unsigned blocks, unsigned threads, uint64_t seed,
                                 float* out, float* counter, emulator::Watched* watched, size_t watched_count) {
  const std::string name = kernel;
  return emulator::guarded(seed, 0, watched, watched_count, [&] {
    if (name == "reverse") launch(kernel, reverse, blocks, threads, 0, nullptr, out, kind == 0);
    if (name == "unwritten") launch(kernel, unwritten, blocks, threads, 4 * threads, nullptr, out, kind == 1);
    if (name == "barriers") launch(kernel, barriers, blocks, threads, 0, nullptr, out, kind);
    if (name == "shuffles") launch(kernel, shuffles, blocks, threads, 0, nullptr, out, kind);
    if (name == "half_warps") launch(kernel, half_warps, blocks, threads, 0, nullptr, out);
    if (name == "arrivals") launch(kernel, arrivals, blocks, threads, 0, nullptr, out, counter);
    if (name == "intrinsics") launch(kernel, intrinsics, blocks, threads, 0, nullptr, out);
    if (name == "block_functions") launch(kernel, block_functions, blocks, threads, 0, nullptr, out);
    if (name == "beyond") launch(kernel, beyond, blocks, threads, 4 * threads, nullptr, out, kind);
    if (name == "reads") launch(kernel, reads, blocks, threads, 0, nullptr, out, counter, kind);
  });
}

// The same in a process of its own, for a sanitizer that ends it: NAME KIND THREADS.
int main(int, char** arguments) {
  float out[1024], counter[1] = {0};
  const char* message = run_wrong(arguments[1], std::stoi(arguments[2]), 1, unsigned(std::stoi(arguments[3])), 0, out,
                                  counter, nullptr, 0);
  std::puts(*message ? message : "ran");
  return 0;
}
