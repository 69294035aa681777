// The CPU bodies. Arguments are those of the operator (fastsal/operators.py), then its allocated outputs. A body
// returns 0, or 1 when it met a value the contract refuses; nothing was written to a mutated argument then.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace fastsal {

using torch::stable::Tensor;

int64_t random_start(Tensor x, Tensor eps, Tensor seed, std::optional<Tensor> sample_ids,
                     std::optional<Tensor> clip_min, std::optional<Tensor> clip_max, std::optional<Tensor> ids,
                     double p, Tensor start);

int64_t pgd_step(Tensor x, Tensor x_adv, Tensor grad, Tensor eps, Tensor alpha, std::optional<Tensor> clip_min,
                 std::optional<Tensor> clip_max, std::optional<Tensor> rows, std::optional<Tensor> ids, double p,
                 int64_t topk, Tensor next, Tensor nonfinite);

int64_t truncated_cross_entropy(Tensor logits, Tensor target, std::optional<Tensor> ids, double cut, Tensor loss,
                                Tensor grad, Tensor right, Tensor over);

int64_t margin_loss(Tensor logits, Tensor target, std::optional<Tensor> other, std::optional<Tensor> ids, bool dlr,
                    Tensor loss, Tensor grad);

int64_t kl_divergence(Tensor clean, Tensor adv, std::optional<Tensor> ids, bool both, Tensor loss, Tensor adv_grad,
                      Tensor clean_grad);

int64_t retire(Tensor previous, Tensor current, std::optional<Tensor> right, std::optional<Tensor> over,
               std::optional<Tensor> rows, std::optional<Tensor> ids, Tensor result, Tensor stop, int64_t step,
               bool last, Tensor rows_out, Tensor ids_out, Tensor live);

}  // namespace fastsal
