// Prints Philox words as the C++ bodies make them: of one counter block, and of kBlocks at a time, by instruction set.
// Arguments: a tier, then seed, sample, block as unsigned decimals, any number of times.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "rows/noise.h"
#include "rows/random_start.h"

namespace {

struct Words {
  uint32_t one[4], many[4 * fastsal::kBlocks];
};

FASTSAL_ROW void make(uint64_t seed, uint64_t sample, uint64_t block, Words& words) {
  fastsal::philox_block(seed, sample, block, words.one);
  fastsal::philox(seed, sample, block, words.many);
}

void baseline(uint64_t seed, uint64_t sample, uint64_t block, Words& words) { make(seed, sample, block, words); }
#if defined(__x86_64__)
__attribute__((target("avx2"))) void avx2(uint64_t seed, uint64_t sample, uint64_t block, Words& words) {
  make(seed, sample, block, words);
}
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512"))) void avx512(
    uint64_t seed, uint64_t sample, uint64_t block, Words& words) {
  make(seed, sample, block, words);
}
#endif

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) return 2;
  auto run = std::strcmp(arguments[1], "baseline") ? nullptr : baseline;
#if defined(__x86_64__)
  if (!std::strcmp(arguments[1], "avx2") && __builtin_cpu_supports("avx2")) run = avx2;
  if (!std::strcmp(arguments[1], "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    run = avx512;
#endif
  if (!run) return 3;
  for (int at = 2; at + 2 < count; at += 3) {
    const auto number = [&](int i) { return uint64_t(std::strtoull(arguments[at + i], nullptr, 10)); };
    Words words;
    run(number(0), number(1), number(2), words);
    for (const uint32_t word : words.one) std::printf("%u ", word);
    for (const uint32_t word : words.many) std::printf("%u ", word);
    std::printf("\n");
  }
  return 0;
}
