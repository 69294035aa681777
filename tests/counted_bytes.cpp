// Counts the bytes that a row body moves, by instantiating it with a pointer that counts. Prints one line per operand:
// body, operand, bytes loaded, bytes stored, bytes of distinct addresses touched, all per row of kSize elements.
#include <cstdio>
#include <type_traits>
#include <vector>

#include "rows/kl_divergence.h"
#include "rows/l1_step.h"
#include "rows/margin_loss.h"
#include "rows/pgd_step.h"
#include "rows/random_start.h"
#include "rows/truncated_cross_entropy.h"

namespace fastsal {

constexpr int64_t kSize = 1000;

struct Traffic {
  int64_t loads = 0, stores = 0;
  std::vector<bool> touched = std::vector<bool>(kSize);
};

struct Same {
  int64_t operator()(int64_t i) const { return i; }
};

// What an element of an output is, so that `p[i] = v` and `store(&p[i], v)` count a store.
template <class T>
struct Slot {
  T* place;
  Traffic* traffic;
  int64_t index;
  void put(T v) const {
    *place = v;
    traffic->stores += 1;
    traffic->touched[size_t(index)] = true;
  }
  void operator=(T v) const { put(v); }
  operator T() const {  // read again what was written
    traffic->loads += 1;
    return *place;
  }
  Slot operator&() const { return *this; }
};
template <class T, class V>
void store(Slot<T> slot, V v) {
  T rounded;
  store(&rounded, v);
  slot.put(rounded);
}

template <class T>
struct Input {
  const T* data;
  Traffic* traffic;
  T operator[](int64_t i) const {
    traffic->loads += 1;
    traffic->touched[size_t(i)] = true;
    return data[i];
  }
};
template <class T>
struct Output {
  T* data;
  Traffic* traffic;
  Slot<T> operator[](int64_t i) const { return {data + i, traffic, i}; }
};

template <class T>
struct Operand {
  const char* name;
  std::vector<T> values = std::vector<T>(kSize);
  Traffic traffic;
  Operand(const char* label, float scale) : name(label) {
    for (int64_t i = 0; i < kSize; ++i) {
      const float v = scale * float((i * 37) % 101 - 50) / 50;
      if constexpr (std::is_same_v<T, double>)
        values[size_t(i)] = v;
      else
        store(&values[size_t(i)], v);
    }
  }
  Input<T> in() { return {values.data(), &traffic}; }
  Output<T> out() { return {values.data(), &traffic}; }
  void print(const char* body) const {
    int64_t distinct = 0;
    for (const bool touched : traffic.touched) distinct += touched;
    const int64_t width = int64_t(sizeof(T));
    std::printf("%s %s %lld %lld %lld\n", body, name, static_cast<long long>(traffic.loads * width),
                static_cast<long long>(traffic.stores * width), static_cast<long long>(distinct * width));
  }
};

enum class Norm { linf, l2, l1 };

template <class T, class G>
void step(const char* body, Norm norm, float slope, T eps) {
  Operand<T> x("x", 1), x_adv("x_adv", 1.01f), next("next", 0);
  Operand<G> grad("grad", slope);
  const UniformBox<T> box{T(-2), T(2)};
  std::vector<double> scratch(l1_scratch(kSize));
  if (norm == Norm::linf)
    linf_step_row<T>(x.in(), x_adv.in(), grad.in(), next.out(), kSize, eps, T(0.1), box);
  else if (norm == Norm::l2)
    l2_step_row<T>(x.in(), x_adv.in(), grad.in(), next.out(), kSize, eps, T(0.1), box);
  else
    l1_step_row<T>(x.in(), x_adv.in(), grad.in(), next.out(), kSize, eps, T(0.1), kSize / 20, box, scratch.data(), Same(),
                   Same());
  x.print(body), x_adv.print(body), grad.print(body), next.print(body);
}

template <class Z>
void losses(const char* cross_entropy, const char* margin, const char* dlr, const char* divergence, const char* one) {
  using T = typename LossOf<Z>::Type;
  {
    Operand<Z> logits("logits", 3), grad("grad", 0);
    cross_entropy_row<T>(logits.in(), grad.out(), kSize, 3, T(0.7));
    logits.print(cross_entropy), grad.print(cross_entropy);
  }
  {
    Operand<Z> logits("logits", 3), grad("grad", 0);
    margin_row<T>(logits.in(), grad.out(), kSize, 3, -1);
    logits.print(margin), grad.print(margin);
  }
  {
    Operand<Z> logits("logits", 3), grad("grad", 0);
    dlr_row<T>(logits.in(), grad.out(), kSize, 3, 7);
    logits.print(dlr), grad.print(dlr);
  }
  for (const bool both : {true, false}) {
    Operand<Z> clean("clean", 3), adv("adv", 2), adv_grad("adv_grad", 0), clean_grad("clean_grad", 0);
    const char* body = both ? divergence : one;
    if (both)
      kl_row<true, T>(clean.in(), adv.in(), adv_grad.out(), clean_grad.out(), kSize);
    else
      kl_row<false, T>(clean.in(), adv.in(), adv_grad.out(), clean_grad.out(), kSize);
    clean.print(body), adv.print(body), adv_grad.print(body), clean_grad.print(body);
  }
}

// Ten rows of a hundredth of the classes each, one beside the other.
void short_rows(const char* body) {
  constexpr int64_t rows = 10, classes = 10;
  Operand<float> logits("logits", 3), grad("grad", 0);
  const int64_t labels[rows] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  CrossEntropy<float> out[rows];
  cross_entropy_short_rows<float>(logits.in(), grad.out(), rows, classes, labels, 0.7f, out);
  logits.print(body), grad.print(body);
}

void kl_short_rows(const char* body) {
  constexpr int64_t rows = 10, classes = 10;
  Operand<float> clean("clean", 2), adv("adv", 3), adv_grad("adv_grad", 0), clean_grad("clean_grad", 0);
  const int64_t samples[rows] = {9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
  float loss[rows];
  kl_short_rows<true, float>(clean.in(), samples, adv.in(), adv_grad.out(), clean_grad.out(), rows, classes, loss);
  clean.print(body), adv.print(body), adv_grad.print(body), clean_grad.print(body);
}

}  // namespace fastsal

int main() {
  using namespace fastsal;
  std::printf("elements per row %lld\n", static_cast<long long>(kSize));
  step<float, float>("linf_step_fp32", Norm::linf, 1, 0.05f);
  step<float, bfloat16>("linf_step_bf16_grad", Norm::linf, 1, 0.05f);
  step<float, float16>("linf_step_fp16_grad", Norm::linf, 1, 0.05f);
  step<double, double>("linf_step_fp64", Norm::linf, 1, 0.05);
  step<float, float>("l2_step_fp32", Norm::l2, 1, 0.05f);
  step<float, bfloat16>("l2_step_bf16_grad", Norm::l2, 1, 0.05f);
  step<double, double>("l2_step_fp64", Norm::l2, 1, 0.05);
  step<float, float>("l2_step_zero_gradient", Norm::l2, 0, 0.05f);
  step<float, float>("l1_step_fp32", Norm::l1, 1, 0.05f);
  step<float, bfloat16>("l1_step_bf16_grad", Norm::l1, 1, 0.05f);
  step<double, double>("l1_step_fp64", Norm::l1, 1, 0.05);
  step<float, float>("l1_step_inside", Norm::l1, 1, 1e6f);
  const std::vector<uint32_t> words(kSize, 12345);
  const std::vector<double> noise(kSize, 0.01);
  const UniformBox<float> box{-2, 2};
  {
    Operand<float> x("x", 1), start("start", 0);
    linf_start<float>(x.in(), start.out(), words.data(), kSize, 0.05f, box);
    x.print("linf_start_fp32"), start.print("linf_start_fp32");
  }
  {
    Operand<float> x("x", 1), start("start", 0);
    scaled_start<float>(x.in(), start.out(), noise.data(), kSize, 0.5, box);
    x.print("l2_l1_start_fp32"), start.print("l2_l1_start_fp32");
  }
  losses<float>("cross_entropy_fp32", "margin_fp32", "dlr_fp32", "kl_fp32", "kl_one_fp32");
  losses<bfloat16>("cross_entropy_bf16", "margin_bf16", "dlr_bf16", "kl_bf16", "kl_one_bf16");
  short_rows("cross_entropy_short_rows");
  kl_short_rows("kl_short_rows");
  return 0;
}
