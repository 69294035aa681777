// Arithmetic of csrc/cuda that no row of a test is long enough for, callable from Python: on the emulator, one thread.
#include "cuda/rows.cuh"

using namespace fastsal;

namespace {

struct Boxed {
  const void *clip_min, *clip_max;
  int64_t clip_min_count, clip_max_count, channels, places;
  bool channels_last;
};

}  // namespace

extern "C" {

void quotients(const int64_t* a, const int64_t* b, int64_t* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = quotient(a[i], b[i]);
}

// Both directions of the order of a row that lies channels last.
void orders(int64_t channels, int64_t places, const int64_t* at, int64_t* logical, int64_t* offset, int64_t count) {
  const RowOrder order(Boxed{nullptr, nullptr, 0, 0, channels, places, true});
  for (int64_t i = 0; i < count; ++i) logical[i] = order.logical(at[i]), offset[i] = order.offset(at[i]);
}

// The lower and upper bounds of `length` elements from `first` on, one bound per channel.
void edges(const double* bounds, int64_t channels, int64_t places, bool last, int64_t first, int length, double* lows,
           double* highs) {
  const Boxed call{bounds, bounds, channels, channels, channels, places, last};
  const Box<double, Boxed> box(call, first, length);
  for (int i = 0; i < length; ++i) lows[i] = box.low(i), highs[i] = box.high(i);
}

int64_t segments(int64_t size) { return segments_of(size); }
int64_t threads_of(int64_t groups, int64_t usual) { return threads_for(groups, unsigned(usual)); }
}
