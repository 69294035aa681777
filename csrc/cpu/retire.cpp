#include <cstring>
#include <vector>

#include "bodies.h"
#include "operands.h"
#include "tiers.h"

namespace fastsal {
namespace {

struct Copy {
  const char* from;
  char* to;
};

struct Copies {
  const Copy* copies;
  size_t bytes;
  FASTSAL_ROW void rows(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) std::memcpy(copies[i].to, copies[i].from, bytes);
  }
};

}  // namespace

int64_t retire(Tensor previous, Tensor current, std::optional<Tensor> right, std::optional<Tensor> over,
               std::optional<Tensor> rows, std::optional<Tensor> ids, Tensor result, Tensor stop, int64_t step,
               bool last, Tensor rows_out, Tensor ids_out, Tensor live) {
  const int64_t count = current.size(0);
  const Index slots(rows), samples(ids);
  if (!slots.within(count, 0, previous.size(0)) || !samples.within(count, -1, result.size(0))) return 1;
  const bool *is_right = data<bool>(right), *is_over = data<bool>(over);
  const size_t element = current.scalar_type() == ScalarType::Double ? 8 : 4;
  const size_t bytes = static_cast<size_t>(row_size(current)) * element;
  int64_t *kept_rows = mutable_data<int64_t>(rows_out), *kept_ids = mutable_data<int64_t>(ids_out);
  int64_t *stopped = mutable_data<int64_t>(stop), kept = 0;
  std::vector<Copy> copies;
  copies.reserve(static_cast<size_t>(count));
  for (int64_t j = 0; j < count; ++j) {
    const int64_t sample = samples.of(j);
    if (sample < 0) continue;
    const bool crossed = (is_over && is_over[j]) || (is_right && !is_right[j]);
    if (!crossed && !last) {
      kept_rows[kept] = j;
      kept_ids[kept++] = sample;
      continue;
    }
    const char* source =
        crossed ? data<char>(previous) + static_cast<size_t>(slots.of(j)) * bytes
                : data<char>(current) + static_cast<size_t>(j) * bytes;
    copies.push_back({source, mutable_data<char>(result) + static_cast<size_t>(sample) * bytes});
    stopped[sample] = crossed ? step - 1 : step;
  }
  mutable_data<int64_t>(live)[0] = kept;
  for (; kept < count; ++kept) {
    kept_rows[kept] = 0;
    kept_ids[kept] = -1;
  }
  for_rows(static_cast<int64_t>(copies.size()), static_cast<int64_t>(bytes / element), Copies{copies.data(), bytes});
  return 0;
}

}  // namespace fastsal
