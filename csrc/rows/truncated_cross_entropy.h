// Cross-entropy of one row on a CPU: loss, gradient, and the flags that the attack asks for.
#pragma once

#include "largest.h"
#include "softmax.h"

namespace fastsal {

template <class T>
struct CrossEntropy {
  T loss;
  bool right, over;
};

// What is left to do once the gradient holds probabilities.
template <class T, class G, class Score>
FASTSAL_ROW CrossEntropy<T> cross_entropy_of(Score score, G grad, int64_t label, T top, T total, T cut) {
  const T own = score(label), loss = cross_entropy_loss(total, own, top);
  store(&grad[label], cross_entropy_slope_by(softmax_term(own, top), 1 / total, true));
  // right: the label has the largest logit, and no class before it has the same
  const auto is_top = [&](int64_t i) FASTSAL_LAMBDA { return score(i) == top; };
  return {loss, own == top && first_match(label, is_top) == label, is_over(loss, cut)};
}

template <class T, class Z, class G>
FASTSAL_ROW CrossEntropy<T> cross_entropy_row(Z logits, G grad, int64_t classes, int64_t label, T cut) {
  const auto score = [&](int64_t i) FASTSAL_LAMBDA { return T(value(logits[i])); };
  if constexpr (kHoldsTerms<T, Z>)
    if (SoftmaxBlocks<T>::worthwhile(classes)) {
      const SoftmaxBlocks<T> blocks(logits, grad, classes);
      if (blocks.total == blocks.total) {
        blocks.normalize(grad, classes);
        return cross_entropy_of(score, grad, label, blocks.top, blocks.total, cut);
      }
    }
  const T top = largest_of<T>(classes, score).value;
  const T total = softmax_total<T>(logits, grad, classes, top), inverse = 1 / total;
  const auto term = [&](int64_t i) FASTSAL_LAMBDA { return softmax_term_of<T>(logits, grad, i, top); };
  for_blocks(classes, T(0), term, [&](auto terms, int64_t i, int64_t count) FASTSAL_LAMBDA {
    T slopes[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) slopes[l] = cross_entropy_slope_by(terms(l), inverse, false);
    store_block(grad, i, count, slopes);
  });
  CrossEntropy<T> row = cross_entropy_of(score, grad, label, top, total, cut);
  row.right = row.right && !(total != total && largest_of<T>(classes, score).nan);  // a NaN is never right
  return row;
}

// The same for `count` <= 16 rows of at most 16 classes, each row in a lane of its own: where rows are short, it is
// them that fill a vector. Sums run over the classes in the order of `fold`, so that the bits are those of the above.
template <class T, class Z, class G>
FASTSAL_ROW void cross_entropy_short_rows(Z logits, G grad, int64_t count, int64_t classes, const int64_t* labels,
                                          T cut, CrossEntropy<T>* out) {
  T z[kLanes][kLanes], terms[kLanes][kLanes], sums[kLanes][kLanes], top[kLanes], own[kLanes];
  T loss[kLanes], inverse[kLanes], first[kLanes];  // first: the lowest class that has the largest logit
  for (int64_t j = 0; j < kLanes; ++j) {
    const int64_t row = j < count ? j : 0;
    for (int64_t c = 0; c < classes; ++c) z[c][j] = T(value(logits[row * classes + c]));
  }
  for (int64_t j = 0; j < kLanes; ++j) top[j] = z[0][j], first[j] = 0, own[j] = z[j < count ? labels[j] : 0][j];
  for (int64_t c = 1; c < classes; ++c)
    for (int64_t j = 0; j < kLanes; ++j) {
      const T had = top[j];
      top[j] = z[c][j] > had ? z[c][j] : had;
      first[j] = z[c][j] > had ? T(c) : first[j];
    }
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t j = 0; j < kLanes; ++j) sums[c][j] = terms[c][j] = softmax_term(z[c][j], top[j]);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t c = 0; c < width && c + width < classes; ++c)
      for (int64_t j = 0; j < kLanes; ++j) sums[c][j] += sums[c + width][j];
  for (int64_t j = 0; j < kLanes; ++j) loss[j] = cross_entropy_loss(sums[0][j], own[j], top[j]);
  for (int64_t j = 0; j < kLanes; ++j) inverse[j] = 1 / sums[0][j];
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t j = 0; j < kLanes; ++j) terms[c][j] = cross_entropy_slope_by(terms[c][j], inverse[j], false);
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t c = 0; c < classes; ++c) store(&grad[j * classes + c], terms[c][j]);
    store(&grad[j * classes + labels[j]], terms[labels[j]][j] - T(1));
    bool right = first[j] == T(labels[j]);
    if (sums[0][j] != sums[0][j])
      for (int64_t c = 0; c < classes; ++c) right &= z[c][j] == z[c][j];
    out[j] = {loss[j], right, is_over(loss[j], cut)};
  }
}

}  // namespace fastsal
