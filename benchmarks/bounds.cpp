// What the arithmetic of the CPU bodies costs by itself: nanoseconds per element on one thread, with every operand in
// the cache, the best of many rounds. Usage: bounds ELEMENTS; prints one line per kind of arithmetic.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "rows/kl_divergence.h"
#include "rows/l1_step.h"
#include "rows/margin_loss.h"
#include "rows/pgd_step.h"
#include "rows/random_start.h"
#include "rows/truncated_cross_entropy.h"

using namespace fastsal;

namespace {

constexpr int64_t kChunk = 4 * kBlocks;
volatile double sink;

template <class Run>
void report(const char* kind, int64_t size, Run run) {
  const auto now = [] { return std::chrono::steady_clock::now(); };
  double best = 1e300;
  const int64_t repeats = 1 + 2'000'000 / (size + 1) / 8;
  for (int round = 0; round < 40; ++round) {
    const auto begin = now();
    for (int64_t i = 0; i < repeats; ++i) run();
    const double seconds = std::chrono::duration<double>(now() - begin).count() / double(repeats);
    best = seconds < best ? seconds : best;
  }
  std::printf("%s %.6f\n", kind, best * 1e9 / double(size));
}

struct Same {
  int64_t operator()(int64_t i) const { return i; }
};

}  // namespace

int main(int count, char** arguments) {
  const int64_t size = count > 1 ? std::atoll(arguments[1]) : 3072;
  std::vector<float> x(size), x_adv(size), grad(size), out(size), other(size);
  std::vector<double> noise(l1_scratch(size) + kChunk);
  std::vector<uint32_t> words(size + kChunk);
  for (int64_t i = 0; i < size; ++i) {
    x[i] = float(0.5 + 0.5 * std::sin(double(i) * 12.9898));
    x_adv[i] = x[i] + float(0.03 * std::sin(double(i) * 78.233));
    grad[i] = float(3 * std::sin(double(i) * 37.719) * std::cos(double(i) * 3.1));
  }
  const UniformBox<float> box{0, 1};
  const float eps = 8.0f / 255, alpha = 2.0f / 255;
  const auto blocks = [&](auto body) {
    for (int64_t i = 0; i < size; i += kChunk) body(i);
  };
  report("philox", size, [&] { blocks([&](int64_t i) { philox(7, 11, uint64_t(i) / 4, &words[i]); }); });
  report("normals", size, [&] { blocks([&](int64_t i) { normals(&words[i], &noise[i]); }); });
  report("exponentials_of_words", size, [&] { blocks([&](int64_t i) { signed_exponentials(&words[i], &noise[i]); }); });
  report("softmax_terms", size, [&] { sink = softmax_total<float>(grad.data(), out.data(), size, 3.0f); });
  report("linf_step", size, [&] {
    sink = linf_step_row(x.data(), x_adv.data(), grad.data(), out.data(), size, eps, alpha, box).outside;
  });
  report("l2_step", size, [&] {
    sink = l2_step_row(x.data(), x_adv.data(), grad.data(), out.data(), size, eps, alpha, box).outside;
  });
  report("l1_step", size, [&] {
    sink = l1_step_row(x.data(), x_adv.data(), grad.data(), out.data(), size, 8.0f, 1.0f, size / 20 + 1, box,
                       noise.data(), Same(), Same())
               .outside;
  });
  report("margin", size, [&] { sink = margin_row<float>(grad.data(), out.data(), size, 0, -1); });
  if (size > 2) report("dlr", size, [&] { sink = dlr_row<float>(grad.data(), out.data(), size, 0, -1); });
  return 0;
}
