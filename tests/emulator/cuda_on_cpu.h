// CUDA's block semantics on a CPU, for tests: the very .cuh and .cu files that nvcc compiles, compiled by a C++
// compiler and executed, one fiber per CUDA thread.
//
//   g++ -std=c++17 -O1 -ffp-contract=off -U_FORTIFY_SOURCE -x c++ -include tests/emulator/cuda_on_cpu.h csrc/cuda/OPERATOR.cu
//
// tests/emulated.py does that and calls launch_OPERATOR with pointers of CPU tensors. What a kernel must keep to:
//
// - Launch through fastsal::launch (csrc/cuda/launch.h); block sizes through fastsal::threads, so that a test can vary them.
// - `__shared__ T name[N];` for static shared memory (it becomes thread-local storage, and all of it is filled with
//   NaN bytes before each block); FASTSAL_DYNAMIC_SHARED(T, name) for dynamic shared memory (heap: an address
//   sanitizer sees an index past its end). No thread_local of your own.
// - Rows are read and written through read() and write() of csrc/cuda/rows.cuh. They report to touched(): each operand's
//   bytes are counted, and an access outside of every operand, or off its own alignment, is an error.
// - Blocks run one after another, in an order shuffled by the seed: a block must not wait for another.
// - Threads run one at a time until they finish or meet a barrier or a warp intrinsic; then the order is shuffled anew.
//   After each barrier one warp is late: it goes on only when no other can, so that what it has yet to read may be gone.
//
// Reported as an error, with kernel, block, thread and line: a barrier that not every thread of the block reaches; a warp
// intrinsic whose mask names a lane that does not exist, has finished or waits elsewhere, that leaves out its caller,
// or that reads from a lane outside the mask; a launch that no device accepts.
#pragma once

#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define FASTSAL_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __align__(n) alignas(n)
#define __ldg(pointer) (*(pointer))
#define FASTSAL_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(emulator::machine().dynamic.get())

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) double2 {
  double x, y;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {

constexpr unsigned kMaxThreads = 1024, kLanes = 32;
constexpr size_t kStack = 256 * 1024, kMaxShared = 227 * 1024;

enum class State { ready, barrier, warp, finished };

// Where a thread waits, what it brought along, and what it takes away.
struct Wait {
  const char* operation = "";
  const char* file = "";
  int line = 0;
  unsigned mask = 0, source = 0;
  unsigned char value[16] = {}, result[16] = {};
  bool vote = false;
  unsigned votes = 0;  // of the lanes in the mask, or how many threads of the block
  bool same_place(const Wait& other) const {
    return line == other.line && !std::strcmp(file, other.file) && !std::strcmp(operation, other.operation);
  }
  std::string place() const { return std::string(operation) + " (" + file + ":" + std::to_string(line) + ")"; }
};

struct Fiber {
  ucontext_t start{};
  jmp_buf resume{};
  bool entered = false;
  void* fake_stack = nullptr;
  State state = State::finished;
  Wait wait;
};

struct Launch {
  std::string kernel;
  dim3 grid, block;
  size_t dynamic_shared;
};

// Memory that a test handed over, how many bytes of it the kernels read and wrote, and in how many accesses.
struct Watched {
  uint64_t begin, size;
  int64_t loaded, stored, accesses;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t n) {  // splitmix64
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return (z ^ (z >> 31)) % n;
  }

 private:
  uint64_t state_;
};

// thread-local storage of this library: all of it is shared memory, but for this mark
inline thread_local unsigned char shared_mark;

struct Machine {
  std::vector<Fiber> fibers = std::vector<Fiber>(kMaxThreads);
  unsigned char* stacks = nullptr;
  jmp_buf back{};
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  std::unique_ptr<unsigned char[]> dynamic;
  std::function<void()> body;
  std::string kernel, error;
  unsigned current = 0, threads = 0;
  // set by a test
  uint64_t seed = 0;
  unsigned block_threads = 0;
  int64_t grid_limit = 0;
  Watched* watched = nullptr;
  size_t watched_count = 0;
  // told to a test
  std::vector<Launch> launches;
};

inline Machine& machine() {
  static Machine* machine = new Machine;  // never freed: fibers may stand in the middle of a kernel
  return *machine;
}

inline std::string triple(const char* name, unsigned x, unsigned y, unsigned z) {
  return std::string(name) + " (" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

inline uint3 thread_index(unsigned t) {
  return {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
}

inline std::string thread_name(unsigned t) {
  const uint3 index = thread_index(t);
  return triple("thread", index.x, index.y, index.z);
}

inline void fiber_main();

// The scheduler runs thread `t` until it waits or finishes.
__attribute__((noinline)) inline void run_thread(unsigned t) {
  Machine& m = machine();
  Fiber& fiber = m.fibers[t];
  m.current = t;
  threadIdx = thread_index(t);
  const bool first = !fiber.entered;
  if (first) {
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = m.stacks + t * kStack;
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
    fiber.entered = true;
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&m.scheduler_fake_stack, m.stacks + t * kStack, kStack);
#endif
  if (!_setjmp(m.back)) {
    if (first) setcontext(&fiber.start);
    _longjmp(fiber.resume, 1);  // no system call, unlike swapcontext
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(m.scheduler_fake_stack, nullptr, nullptr);
#endif
}

// The running thread goes back to the scheduler.
__attribute__((noinline)) inline void leave() {
  Machine& m = machine();
  Fiber& fiber = m.fibers[m.current];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber.fake_stack, m.scheduler_stack, m.scheduler_stack_size);
#endif
  if (!_setjmp(fiber.resume)) _longjmp(m.back, 1);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &m.scheduler_stack, &m.scheduler_stack_size);
#endif
}

inline void fiber_main() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_stack_size);
#endif
  for (;;) {
    m.body();
    m.fibers[m.current].state = State::finished;
    leave();
  }
}

inline void report(unsigned t, const std::string& what) {
  Machine& m = machine();
  if (m.error.empty())
    m.error = "kernel " + m.kernel + ", " + triple("block", blockIdx.x, blockIdx.y, blockIdx.z) + ", " +
              thread_name(t) + ": " + what;
}

[[noreturn]] inline void fail_here(const std::string& what) {
  report(machine().current, what);
  for (;;) leave();  // the scheduler stops at the first error and never comes back
}

inline std::string whereabouts(const Fiber& fiber) {
  return fiber.state == State::finished ? "has finished" : "waits at " + fiber.wait.place();
}

// Lets every warp go on whose lanes have all arrived.
inline void release_warps() {
  Machine& m = machine();
  for (unsigned t = 0; t < m.threads; ++t) {
    if (m.fibers[t].state != State::warp) continue;
    const unsigned base = t / kLanes * kLanes;
    const Wait& wait = m.fibers[t].wait;
    bool complete = true;
    unsigned votes = 0;
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      if (!(wait.mask >> lane & 1)) continue;
      const unsigned other = base + lane;
      if (other >= m.threads || m.fibers[other].state != State::warp || m.fibers[other].wait.mask != wait.mask ||
          !m.fibers[other].wait.same_place(wait)) {
        complete = false;
        break;
      }
      votes |= unsigned(m.fibers[other].wait.vote) << lane;
    }
    if (!complete) continue;
    const unsigned mask = wait.mask;
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      if (!(mask >> lane & 1)) continue;
      Wait& own = m.fibers[base + lane].wait;
      std::memcpy(own.result, m.fibers[base + own.source].wait.value, sizeof own.result);
      own.votes = votes;
      m.fibers[base + lane].state = State::ready;
    }
  }
}

// Nobody can go on, and no warp is complete: either the whole block stands at one barrier, or something is wrong.
inline bool release_barrier() {
  Machine& m = machine();
  unsigned waiting = m.threads;
  for (unsigned t = 0; t < m.threads; ++t) {
    const Fiber& fiber = m.fibers[t];
    if (fiber.state == State::finished) continue;
    waiting = t < waiting ? t : waiting;
    if (fiber.state != State::warp) continue;
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const unsigned other = t / kLanes * kLanes + lane;
      if (!(fiber.wait.mask >> lane & 1)) continue;
      const std::string start = "incomplete mask: " + fiber.wait.place() + " names lane " + std::to_string(lane) + ", ";
      if (other >= m.threads) return report(t, start + "which does not exist"), false;
      if (m.fibers[other].state != State::warp || !m.fibers[other].wait.same_place(fiber.wait))
        return report(t, start + "which " + whereabouts(m.fibers[other])), false;
      if (m.fibers[other].wait.mask != fiber.wait.mask) return report(t, start + "which names another mask"), false;
    }
  }
  if (waiting == m.threads) return false;  // all have finished
  const Wait& first = m.fibers[waiting].wait;
  unsigned votes = 0;
  for (unsigned t = 0; t < m.threads; ++t) {
    const Fiber& fiber = m.fibers[t];
    if (fiber.state == State::finished || !fiber.wait.same_place(first))
      return report(waiting, "divergent barrier: it waits at " + first.place() + ", while " + thread_name(t) + " " +
                                 whereabouts(fiber)),
             false;
    votes += fiber.wait.vote;
  }
  for (unsigned t = 0; t < m.threads; ++t) {
    m.fibers[t].wait.votes = votes;
    m.fibers[t].state = State::ready;
  }
  return true;
}

struct SharedMemory {
  unsigned char* begin = nullptr;
  size_t size = 0;
};

inline SharedMemory static_shared() {
  SharedMemory found;
  (void)*const_cast<volatile unsigned char*>(&shared_mark);  // makes the loader allocate it
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        auto* begin = static_cast<unsigned char*>(info->dlpi_tls_data);
        for (int i = 0; begin && i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_TLS && &shared_mark >= begin &&
              &shared_mark < begin + info->dlpi_phdr[i].p_memsz)
            *static_cast<SharedMemory*>(out) = {begin, info->dlpi_phdr[i].p_memsz};
        return 0;
      },
      &found);
  if (!found.begin) throw std::runtime_error("emulator: static shared memory not found");
  return found;
}

inline void run_block(Random& random, size_t dynamic_shared) {
  Machine& m = machine();
  const SharedMemory fixed = static_shared();
  std::memset(fixed.begin, 0xff, fixed.size);
  m.dynamic.reset(new unsigned char[dynamic_shared]);
  std::memset(m.dynamic.get(), 0xff, dynamic_shared);
  for (unsigned t = 0; t < m.threads; ++t) m.fibers[t].state = State::ready;
  const unsigned warps = (m.threads + kLanes - 1) / kLanes;
  unsigned late = unsigned(random.below(warps));  // a warp that goes on only when no other can
  std::vector<unsigned> order;
  for (;;) {
    order.clear();
    for (unsigned t = 0; t < m.threads; ++t)
      if (m.fibers[t].state == State::ready && t / kLanes != late) order.push_back(t);
    if (order.empty())
      for (unsigned t = late * kLanes; t < m.threads && t / kLanes == late; ++t)
        if (m.fibers[t].state == State::ready) order.push_back(t);
    if (order.empty()) {
      if (!release_barrier()) return;
      late = unsigned(random.below(warps));
      continue;
    }
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    for (const unsigned t : order) {
      run_thread(t);
      if (!m.error.empty()) return;
    }
    release_warps();
  }
}

inline uint64_t greatest_common_divisor(uint64_t a, uint64_t b) { return b ? greatest_common_divisor(b, a % b) : a; }

inline void launch(const char* kernel, dim3 grid, dim3 block, size_t dynamic_shared, std::function<void()> body) {
  Machine& m = machine();
  m.kernel = kernel;
  m.error.clear();
  const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64 || blocks == 0 || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535 || dynamic_shared > kMaxShared)
    throw std::runtime_error("kernel " + m.kernel + ": no device accepts " + triple("grid", grid.x, grid.y, grid.z) +
                             ", " + triple("block", block.x, block.y, block.z) + ", " +
                             std::to_string(dynamic_shared) + " bytes of shared memory");
  if (!m.stacks) {
    void* memory = mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("emulator: no memory for stacks");
    m.stacks = static_cast<unsigned char*>(memory);
  }
  m.launches.push_back({kernel, grid, block, dynamic_shared});
  m.body = std::move(body);
  m.threads = unsigned(threads);
  gridDim = grid;
  blockDim = block;
  Random random(m.seed * 1000003 + m.launches.size());
  // blocks in the order offset, offset + stride, ... modulo their number
  const uint64_t offset = random.below(blocks);
  uint64_t stride = 1 + random.below(blocks);
  while (greatest_common_divisor(stride, blocks) != 1) ++stride;
  for (uint64_t i = 0; i < blocks && m.error.empty(); ++i) {
    const uint64_t b = (offset + (unsigned __int128)(i)*stride) % blocks;
    blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
    run_block(random, dynamic_shared);
  }
  m.dynamic.reset();
  if (m.error.empty()) return;
  for (Fiber& fiber : m.fibers) fiber.entered = false;  // they stand in the middle of a kernel: never resumed
  throw std::runtime_error(m.error);
}

inline Wait& wait_for(State state, const char* operation, const char* file, int line) {
  Machine& m = machine();
  Fiber& fiber = m.fibers[m.current];
  fiber.state = state;
  fiber.wait.operation = operation;
  fiber.wait.file = file;
  fiber.wait.line = line;
  return fiber.wait;
}

inline const Wait& barrier(const char* operation, bool vote, const char* file, int line) {
  Wait& wait = wait_for(State::barrier, operation, file, line);
  wait.vote = vote;
  leave();
  return wait;
}

inline unsigned lane() { return machine().current % kLanes; }

inline Wait& warp(const char* operation, unsigned mask, bool vote, unsigned source, const char* file, int line,
                  const void* value = nullptr, size_t size = 0) {
  Wait& wait = wait_for(State::warp, operation, file, line);
  if (!(mask >> lane() & 1)) fail_here("wrong mask: " + wait.place() + " does not name its caller");
  if (!(mask >> source & 1))
    fail_here("wrong mask: " + wait.place() + " reads from lane " + std::to_string(source) + ", which it does not name");
  wait.mask = mask;
  wait.source = source;
  wait.vote = vote;
  if (size) std::memcpy(wait.value, value, size);
  leave();
  return wait;
}

template <class T>
T shuffle(const char* operation, unsigned mask, T value, unsigned source, const char* file, int line) {
  static_assert(sizeof(T) <= 8, "no shuffle takes more than 8 bytes");
  const Wait& wait = warp(operation, mask, false, source, file, line, &value, sizeof value);
  std::memcpy(&value, wait.result, sizeof value);
  return value;
}

// A kernel reads or writes a V in one access.
template <class V>
void touched(const V* at, bool write) {
  Machine& m = machine();
  const uint64_t address = reinterpret_cast<uintptr_t>(at);
  constexpr size_t size = sizeof(V);
  const auto fail = [&](const char* what) {
    fail_here((write ? "writes " : "reads ") + std::to_string(size) + " bytes " + what);
  };
  if (address % alignof(V)) fail("off their alignment");
  for (size_t i = 0; i < m.watched_count; ++i) {
    Watched& memory = m.watched[i];
    if (address < memory.begin || address - memory.begin >= memory.size) continue;
    if (size > memory.size - (address - memory.begin)) break;
    (write ? memory.stored : memory.loaded) += int64_t(size);
    ++memory.accesses;
    return;
  }
  if (m.watched_count) fail("outside of every operand");
}

// Runs a test's call. The answer is empty, or what went wrong.
template <class Call>
const char* guarded(uint64_t seed, unsigned block_threads, Watched* watched, size_t watched_count, Call call) {
  static std::string message;
  Machine& m = machine();
  m.seed = seed;
  m.block_threads = block_threads;
  m.watched = watched;
  m.watched_count = watched_count;
  m.launches.clear();
  try {
    call();
    message.clear();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace emulator

#define FASTSAL_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(FASTSAL_PLACE) { emulator::barrier("__syncthreads", false, file, line); }
inline int __syncthreads_or(int vote, FASTSAL_PLACE) {
  return emulator::barrier("__syncthreads_or", vote != 0, file, line).votes != 0;
}
inline int __syncthreads_and(int vote, FASTSAL_PLACE) {
  return emulator::barrier("__syncthreads_and", vote != 0, file, line).votes == emulator::machine().threads;
}
inline int __syncthreads_count(int vote, FASTSAL_PLACE) {
  return int(emulator::barrier("__syncthreads_count", vote != 0, file, line).votes);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, FASTSAL_PLACE) {
  emulator::warp("__syncwarp", mask, false, emulator::lane(), file, line);
}
inline unsigned __ballot_sync(unsigned mask, int vote, FASTSAL_PLACE) {
  return emulator::warp("__ballot_sync", mask, vote != 0, emulator::lane(), file, line).votes;
}
inline int __any_sync(unsigned mask, int vote, FASTSAL_PLACE) {
  return emulator::warp("__any_sync", mask, vote != 0, emulator::lane(), file, line).votes != 0;
}
inline int __all_sync(unsigned mask, int vote, FASTSAL_PLACE) {
  return emulator::warp("__all_sync", mask, vote != 0, emulator::lane(), file, line).votes == mask;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, FASTSAL_PLACE) {
  const unsigned first = emulator::lane() / unsigned(width) * unsigned(width);
  return emulator::shuffle("__shfl_sync", mask, value, first + unsigned(source) % unsigned(width), file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTSAL_PLACE) {
  const unsigned own = emulator::lane(), inside = own % unsigned(width);
  return emulator::shuffle("__shfl_up_sync", mask, value, inside < delta ? own : own - delta, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTSAL_PLACE) {
  const unsigned own = emulator::lane(), inside = own % unsigned(width);
  return emulator::shuffle("__shfl_down_sync", mask, value, inside + delta < unsigned(width) ? own + delta : own, file,
                           line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, FASTSAL_PLACE) {
  const unsigned own = emulator::lane(), other = own ^ unsigned(lanes);
  const bool inside = other / unsigned(width) <= own / unsigned(width);
  return emulator::shuffle("__shfl_xor_sync", mask, value, inside ? other : own, file, line);
}

// One thread runs at a time: a plain access is atomic.
template <class T>
T atomicAdd(T* at, T value) {
  const T old = *at;
  *at = old + value;
  return old;
}
template <class T>
T atomicMax(T* at, T value) {
  const T old = *at;
  *at = old > value ? old : value;
  return old;
}
template <class T>
T atomicOr(T* at, T value) {
  const T old = *at;
  *at = old | value;
  return old;
}
template <class T>
T atomicExch(T* at, T value) {
  const T old = *at;
  *at = value;
  return old;
}
template <class T>
T atomicCAS(T* at, T expected, T value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}
inline void __threadfence() {}

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
