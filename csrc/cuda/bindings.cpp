// The CUDA bodies as torch sees them: from tensors to a Call, on the stream and the device of the caller. No arithmetic,
// and no header of CUDA: kernels and launches stand in the other files of this folder.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "../cpu/operands.h"
#include "kl_divergence.h"
#include "margin_loss.h"
#include "pgd_step.h"
#include "random_start.h"
#include "retire.h"
#include "truncated_cross_entropy.h"

namespace fastsal {
namespace {

// The device of a tensor is the current one as long as this lives; the stream is that which torch has current there.
class Place {
 public:
  explicit Place(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Half:
      return Dtype::float16;
    default:
      throw std::runtime_error("fastsal: a CUDA body got a dtype that the contract refuses");
  }
}

// Memory for a kernel to work in, for as long as this lives: what is freed then, torch hands out again on this stream
// alone, behind the kernel.
class Workspace {
 public:
  Workspace(const Tensor& like, int64_t bytes) {
    if (bytes > 0) memory_ = torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
  }
  void* data() const { return memory_ ? memory_->data_ptr() : nullptr; }

 private:
  std::optional<Tensor> memory_;
};

// Memory that is zero before and after every call: one piece for all calls of a stream, so that none has to clear it.
// Never freed: at the end of the process the device may be gone before it.
void* tickets(const Tensor& like, void* stream, int64_t bytes) {
  if (bytes == 0) return nullptr;
  static std::mutex* lock = new std::mutex;
  static auto* pieces = new std::map<std::pair<int32_t, void*>, Tensor>;
  const std::lock_guard<std::mutex> held(*lock);
  const std::pair<int32_t, void*> place(like.get_device_index(), stream);
  auto piece = pieces->find(place);
  if (piece == pieces->end() || piece->second.numel() < bytes) {
    const Tensor fresh = torch::stable::new_zeros(like, {bytes}, ScalarType::Byte);
    piece = pieces->insert_or_assign(place, fresh).first;
  }
  return piece->second.data_ptr();
}

int64_t length(const std::optional<Tensor>& vector) { return vector ? vector->size(0) : 0; }

int64_t random_start(Tensor x, Tensor eps, Tensor seed, std::optional<Tensor> sample_ids,
                     std::optional<Tensor> clip_min, std::optional<Tensor> clip_max, std::optional<Tensor> ids,
                     double p, Tensor start) {
  const Place place(x);
  const RowLayout row(x);
  RandomStartCall call{};
  call.x = data<void>(x);
  call.eps = data<void>(eps);
  call.seed = data<int64_t>(seed);
  call.sample_ids = data<int64_t>(sample_ids);
  call.clip_min = fastsal::data<void>(clip_min);
  call.clip_max = fastsal::data<void>(clip_max);
  call.ids = data<int64_t>(ids);
  call.p = p;
  call.start_out = mutable_data<void>(start);
  call.count = start.size(0);
  call.samples = x.size(0);
  call.size = row.size;
  call.channels = row.channels;
  call.places = row.places;
  call.channels_last = row.channels_last;
  call.eps_count = eps.size(0);
  call.clip_min_count = length(clip_min);
  call.clip_max_count = length(clip_max);
  call.x_dtype = dtype_of(x);
  const Workspace workspace(x, workspace_bytes(call));
  call.workspace = workspace.data();
  launch_random_start(call, place.stream());
  return 0;
}

int64_t pgd_step(Tensor x, Tensor x_adv, Tensor grad, Tensor eps, Tensor alpha, std::optional<Tensor> clip_min,
                 std::optional<Tensor> clip_max, std::optional<Tensor> rows, std::optional<Tensor> ids, double p,
                 int64_t topk, Tensor next, Tensor nonfinite) {
  const Place place(x);
  const RowLayout row(x);
  PgdStepCall call{};
  call.x = data<void>(x);
  call.x_adv = data<void>(x_adv);
  call.grad = data<void>(grad);
  call.eps = data<void>(eps);
  call.alpha = data<void>(alpha);
  call.clip_min = fastsal::data<void>(clip_min);
  call.clip_max = fastsal::data<void>(clip_max);
  call.rows = data<int64_t>(rows);
  call.ids = data<int64_t>(ids);
  call.p = p;
  call.topk = topk;
  call.next_out = mutable_data<void>(next);
  call.nonfinite_out = mutable_data<bool>(nonfinite);
  call.count = next.size(0);
  call.points = x_adv.size(0);
  call.samples = x.size(0);
  call.size = row.size;
  call.channels = row.channels;
  call.places = row.places;
  call.channels_last = row.channels_last;
  call.eps_count = eps.size(0);
  call.alpha_count = alpha.size(0);
  call.clip_min_count = length(clip_min);
  call.clip_max_count = length(clip_max);
  call.x_dtype = dtype_of(x);
  call.grad_dtype = dtype_of(grad);
  const Workspace workspace(x, workspace_bytes(call));
  call.workspace = workspace.data();
  call.tickets = tickets(x, place.stream(), tickets_bytes(call));
  launch_pgd_step(call, place.stream());
  return 0;
}

int64_t truncated_cross_entropy(Tensor logits, Tensor target, std::optional<Tensor> ids, double cut, Tensor loss,
                                Tensor grad, Tensor right, Tensor over) {
  const Place place(logits);
  TruncatedCrossEntropyCall call{};
  call.logits = data<void>(logits);
  call.target = data<int64_t>(target);
  call.ids = data<int64_t>(ids);
  call.cut = cut;
  call.loss_out = mutable_data<void>(loss);
  call.grad_out = mutable_data<void>(grad);
  call.right_out = mutable_data<bool>(right);
  call.over_out = mutable_data<bool>(over);
  call.count = logits.size(0);
  call.samples = target.size(0);
  call.classes = logits.size(1);
  call.logits_dtype = dtype_of(logits);
  launch_truncated_cross_entropy(call, place.stream());
  return 0;
}

int64_t margin_loss(Tensor logits, Tensor target, std::optional<Tensor> other, std::optional<Tensor> ids, bool dlr,
                    Tensor loss, Tensor grad) {
  const Place place(logits);
  MarginLossCall call{};
  call.logits = data<void>(logits);
  call.target = data<int64_t>(target);
  call.other = data<int64_t>(other);
  call.ids = data<int64_t>(ids);
  call.dlr = dlr;
  call.loss_out = mutable_data<void>(loss);
  call.grad_out = mutable_data<void>(grad);
  call.count = logits.size(0);
  call.samples = target.size(0);
  call.classes = logits.size(1);
  call.logits_dtype = dtype_of(logits);
  launch_margin_loss(call, place.stream());
  return 0;
}

int64_t kl_divergence(Tensor clean, Tensor adv, std::optional<Tensor> ids, bool both, Tensor loss, Tensor adv_grad,
                      Tensor clean_grad) {
  const Place place(adv);
  KlDivergenceCall call{};
  call.clean = data<void>(clean);
  call.adv = data<void>(adv);
  call.ids = data<int64_t>(ids);
  call.both = both;
  call.loss_out = mutable_data<void>(loss);
  call.adv_grad_out = mutable_data<void>(adv_grad);
  call.clean_grad_out = mutable_data<void>(clean_grad);
  call.count = adv.size(0);
  call.samples = clean.size(0);
  call.classes = adv.size(1);
  call.adv_dtype = dtype_of(adv);
  launch_kl_divergence(call, place.stream());
  return 0;
}

int64_t retire(Tensor previous, Tensor current, std::optional<Tensor> right, std::optional<Tensor> over,
               std::optional<Tensor> rows, std::optional<Tensor> ids, Tensor result, Tensor stop, int64_t step,
               bool last, Tensor rows_out, Tensor ids_out, Tensor live) {
  const Place place(current);
  RetireCall call{};
  call.previous = data<void>(previous);
  call.current = data<void>(current);
  call.right = data<bool>(right);
  call.over = data<bool>(over);
  call.rows = data<int64_t>(rows);
  call.ids = data<int64_t>(ids);
  call.result = mutable_data<void>(result);
  call.stop = mutable_data<int64_t>(stop);
  call.step = step;
  call.last = last;
  call.rows_out = mutable_data<int64_t>(rows_out);
  call.ids_out = mutable_data<int64_t>(ids_out);
  call.live_out = mutable_data<int64_t>(live);
  call.count = current.size(0);
  call.points = previous.size(0);
  call.samples = result.size(0);
  call.size = row_size(current);
  call.current_dtype = dtype_of(current);
  launch_retire(call, place.stream());
  return 0;
}

}  // namespace
}  // namespace fastsal

STABLE_TORCH_LIBRARY_IMPL(fastsal_body, CUDA, m) {
  m.impl("random_start", TORCH_BOX(&fastsal::random_start));
  m.impl("pgd_step", TORCH_BOX(&fastsal::pgd_step));
  m.impl("truncated_cross_entropy", TORCH_BOX(&fastsal::truncated_cross_entropy));
  m.impl("margin_loss", TORCH_BOX(&fastsal::margin_loss));
  m.impl("kl_divergence", TORCH_BOX(&fastsal::kl_divergence));
  m.impl("retire", TORCH_BOX(&fastsal::retire));
}
