#include "tiers.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastsal {
namespace {

Tier best() {
#if FASTSAL_X86_TIERS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    return Tier::avx512;
  if (__builtin_cpu_supports("avx2")) return Tier::avx2;
#endif
  return Tier::baseline;
}

Tier choose() {
  const char* named = std::getenv("FASTSAL_CPU_TIER");
  const Tier most = best();
  if (named == nullptr || *named == '\0') return most;
  const std::string wanted = named;
  for (const Tier candidate : {Tier::baseline, Tier::avx2, Tier::avx512}) {
    const char* names[] = {"baseline", "avx2", "avx512"};
    if (wanted != names[static_cast<int>(candidate)]) continue;
    if (candidate > most)
      throw std::runtime_error("FASTSAL_CPU_TIER: expected a tier that this processor has (at most " +
                               std::string(names[static_cast<int>(most)]) + "), got " + wanted);
    return candidate;
  }
  throw std::runtime_error("FASTSAL_CPU_TIER: expected baseline, avx2 or avx512, got " + wanted);
}

}  // namespace

Tier tier() {
  static const Tier chosen = choose();
  return chosen;
}

const char* tier_name() {
  switch (tier()) {
    case Tier::avx512:
      return "avx512";
    case Tier::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace fastsal
