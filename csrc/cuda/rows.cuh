// How a block reads and writes a row of x, x_adv or a gradient. Its threads take turns: in each turn a thread has kGroup
// elements, 16 bytes of them. On the vector path these are neighbours and move in one access; otherwise (odd length or
// base) they lie a block's width apart and move one by one, so that neighbouring threads still touch neighbouring elements.
#pragma once

#include "../rows/rounding.h"
#include "block.cuh"
#include "call.h"

namespace fastsal {

template <class V>
__device__ __forceinline__ V read(const V* at) {
#if defined(FASTSAL_EMULATED)
  emulator::touched(at, false);
#endif
  return *at;
}
template <class V>
__device__ __forceinline__ void write(V* at, const V& v) {
#if defined(FASTSAL_EMULATED)
  emulator::touched(at, true);
#endif
#if defined(__CUDA_ARCH__)
  // 16 bytes at a time: the compiler by itself may take a group apart
  if constexpr (alignof(V) == 16 && sizeof(V) % 16 == 0) {
    unsigned bits[sizeof(V) / 4];
    memcpy(bits, &v, sizeof(V));
#pragma unroll
    for (int i = 0; i < int(sizeof(V) / 4); i += 4)
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(
                       __cvta_generic_to_global(reinterpret_cast<unsigned*>(at) + i)),
                   "r"(bits[i]), "r"(bits[i + 1]), "r"(bits[i + 2]), "r"(bits[i + 3])
                   : "memory");
    return;
  }
#endif
  *at = v;
}

template <class T>
constexpr int kGroup = 16 / int(sizeof(T));

// A streaming kernel keeps three quarters of a multiprocessor's threads resident: so many blocks.
constexpr unsigned kStreamThreads = 384;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
constexpr unsigned kStreamBlocks = 4;  // of 2048 threads
#elif __CUDA_ARCH__ < 800
constexpr unsigned kStreamBlocks = 2;  // of 1024
#else
constexpr unsigned kStreamBlocks = 3;  // of 1536
#endif

// Rows up to this length are one block's work. Longer ones are cut into segments of it, so that a few large rows fill a
// device. Neither depends on the batch: its rows come out the same however it is cut.
constexpr int64_t kSegment = 6144;

inline int64_t segments_of(int64_t size) { return size > kSegment ? (size + kSegment - 1) / kSegment : 1; }

// Threads for groups of elements: no more turns than with the largest block, and no idle warp.
inline unsigned threads_for(int64_t groups, unsigned usual) {
  const int64_t most = threads(usual), turns = groups > most ? (groups + most - 1) / most : 1;
  const int64_t each = (groups + turns - 1) / turns;
  return each <= kWarp ? kWarp : unsigned((each + kWarp - 1) / kWarp * kWarp);
}

// One segment of a row: the task of a block.
struct Segment {
  int64_t j, first;
  __device__ __forceinline__ Segment(int64_t first_row, int64_t first_segment)
      : j(first_row + blockIdx.x), first((first_segment + blockIdx.y) * kSegment) {}
  __device__ __forceinline__ int length(int64_t size) const {
    return int(first + kSegment < size ? kSegment : size - first);
  }
};

// Neighbours that move in one access (fp64 beside fp32: in two).
template <class V, int count>
struct alignas(sizeof(V) * count < 16 ? sizeof(V) * count : 16) Group {
  V values[count];
};

template <class V, int count>
__device__ __forceinline__ Group<V, count> read_group(const V* at) {
  return read(reinterpret_cast<const Group<V, count>*>(at));
}
template <class V, int count>
__device__ __forceinline__ void write_group(V* at, const Group<V, count>& group) {
  write(reinterpret_cast<Group<V, count>*>(at), group);
}

// Where element v of this thread's group lies in turn k.
template <int count, class Index>
__device__ __forceinline__ Index element_at(Index k, int v, bool vector) {
  return vector ? (k * Index(blockDim.x) + Index(threadIdx.x)) * count + v
                : (k * count + v) * Index(blockDim.x) + Index(threadIdx.x);
}

// Whether every row begins on 16 bytes: its length does, and so does every base.
template <class... Pointers>
bool rows_on_16_bytes(int64_t row_bytes, Pointers... bases) {
  uint64_t all = uint64_t(row_bytes);
  ((all |= uint64_t(reinterpret_cast<uintptr_t>(bases))), ...);
  return all % 16 == 0;
}

// v, which the compiler cannot see through: what is made of it in a loop is not made before the loop, where it would hold
// registers, nor carried from turn to turn.
__device__ __forceinline__ int64_t opaque(int64_t v) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(v));
#endif
  return v;
}
__device__ __forceinline__ int opaque(int v) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(v));
#endif
  return v;
}
__device__ __forceinline__ unsigned opaque(unsigned v) { return unsigned(opaque(int(v))); }
// blockDim.x, read anew by each call: kept from one use to the next it held a register.
__device__ __forceinline__ unsigned block_threads() {
#if defined(__CUDA_ARCH__)
  unsigned threads;
  asm volatile("mov.u32 %0, %%ntid.x;" : "=r"(threads));
  return threads;
#else
  return blockDim.x;
#endif
}

// A value of each sample, or one for all of them.
template <class T>
__device__ __forceinline__ T per_sample(const void* values, int64_t count, int64_t sample) {
  return static_cast<const T*>(values)[count == 1 ? 0 : sample];
}

// a / b for a >= 0, b > 0. The 64-bit division of the compiler takes registers even where it is never reached.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return int64_t(uint32_t(a) / uint32_t(b));
  int64_t result = 0, rest = 0;
#pragma unroll 1
  for (int bit = 62; bit >= 0; --bit) {
    rest = rest * 2 + ((a >> bit) & 1);
    result *= 2;
    if (rest >= b) {
      rest -= b;
      ++result;
    }
  }
  return result;
}

// The box. An infinite bound is none. What the call holds is not copied: it lies in constant memory, and registers are
// scarce.
template <class T, class Call>
class Bounds {
 public:
  __device__ __forceinline__ explicit Bounds(const Call& call)
      : call_(call), low_(-Limits<T>::largest), high_(Limits<T>::largest) {
    if (call.clip_min_count == 1) low_ = finite_low(static_cast<const T*>(call.clip_min)[0]);
    if (call.clip_max_count == 1) high_ = finite_high(static_cast<const T*>(call.clip_max)[0]);
  }
  __device__ __forceinline__ bool low_by_channel() const { return call_.clip_min_count > 1; }
  __device__ __forceinline__ bool high_by_channel() const { return call_.clip_max_count > 1; }
  // `channel` is called where it matters
  template <class Channel>
  __device__ __forceinline__ T low(Channel channel) const {
    return low_by_channel() ? finite_low(static_cast<const T*>(call_.clip_min)[channel()]) : low_;
  }
  template <class Channel>
  __device__ __forceinline__ T high(Channel channel) const {
    return high_by_channel() ? finite_high(static_cast<const T*>(call_.clip_max)[channel()]) : high_;
  }

 private:
  static __device__ __forceinline__ T finite_low(T v) { return v < -Limits<T>::largest ? -Limits<T>::largest : v; }
  static __device__ __forceinline__ T finite_high(T v) { return v > Limits<T>::largest ? Limits<T>::largest : v; }
  const Call& call_;
  T low_, high_;
};

// The box of `length` elements from `first` on, fewer than 2^30, by where they lie in memory. Beyond them: any box.
template <class T, class Call>
class Box {
 public:
  __device__ __forceinline__ Box(const Call& call, int64_t first, int length)
      : call_(call), bounds_(call), shift_(0), start_(0), divisor_(1), length_(length) {
    if (!bounds_.low_by_channel() && !bounds_.high_by_channel()) return;
    // a period: the places of a channel, or the channels of a place
    const int64_t period = call.channels_last ? call.channels : call.places;
    const int64_t whole = quotient(first, period), start = first - whole * period;
    // periods that end before element i: (start + i) / period, in 32 bits, since no long one ends twice so soon
    const int64_t excess = period > kFew ? period - kFew : 0;
    divisor_ = uint32_t(period - excess);
    start_ = uint32_t(start > excess ? start - excess : 0);
    shift_ = call.channels_last ? start - start_ : whole;
  }

  __device__ __forceinline__ T low(int i) const {
    return bounds_.low([&] { return channel(i); });
  }
  __device__ __forceinline__ T high(int i) const {
    return bounds_.high([&] { return channel(i); });
  }

 private:
  static constexpr int64_t kFew = int64_t(1) << 30;
  __device__ __forceinline__ int64_t channel(int i) const {
    if (i >= length_) return 0;
    const uint32_t place = start_ + uint32_t(i), ended = place / divisor_;
    return shift_ + (call_.channels_last ? place - int64_t(ended) * call_.channels : ended);
  }
  const Call& call_;
  Bounds<T, Call> bounds_;
  int64_t shift_;
  uint32_t start_, divisor_;
  int length_;
};

// Where an element lies in memory, and which it is in row-major order.
struct RowOrder {
  int64_t channels, places;
  bool channels_last;
  template <class Call>
  __device__ __forceinline__ explicit RowOrder(const Call& call)
      : channels(call.channels), places(call.places), channels_last(call.channels_last) {}
  __device__ __forceinline__ int64_t logical(int64_t offset) const {
    if (!channels_last) return offset;
    const int64_t place = quotient(offset, channels);
    return (offset - place * channels) * places + place;
  }
  __device__ __forceinline__ int64_t channel(int64_t logical) const { return quotient(logical, places); }
  __device__ __forceinline__ int64_t offset(int64_t logical) const {
    if (!channels_last) return logical;
    const int64_t of = channel(logical);
    return (logical - of * places) * channels + of;
  }
};

}  // namespace fastsal
