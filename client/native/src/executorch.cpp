// The engine: ExecuTorch's Module over step.pte and base.ptd.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/extension/threadpool/threadpool_guard.h>

#include "step.h"

namespace fedslm {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::extension::threadpool::NoThreadPoolGuard;
using executorch::runtime::Error;
using executorch::runtime::EValue;

[[noreturn]] void broken(const char* why) { throw Refusal("base-model-mismatch", why); }

class ExecutorchEngine : public Engine {
 public:
  ExecutorchEngine(const std::string& folder, const Manifest& manifest) : manifest_(manifest) {
    const std::string program = folder + "/step.pte";
    module_ = manifest.weights.empty() ? std::make_unique<Module>(program)
                                       : std::make_unique<Module>(program, folder + "/" + manifest.weights);
    if (module_->load_method("forward") != Error::Ok) broken("ExecuTorch cannot load step.pte");
    require_interface();
  }

  Floats gradient(const Example& example, const Floats& factors) override {
    const auto length = static_cast<std::size_t>(manifest_.length);
    Secret<std::int64_t> ids(length, 0), labels(length, -100);
    std::copy(example.ids.begin(), example.ids.end(), ids.begin());
    std::copy(example.labels.begin(), example.labels.end(), labels.begin());
    const std::vector<SizesType> row = {1, static_cast<SizesType>(length)};
    std::vector<TensorPtr> kept = {from_blob(ids.data(), row, ScalarType::Long),
                                   from_blob(labels.data(), row, ScalarType::Long)};
    Floats given = factors;
    std::size_t at = 0;
    for (const Factor& factor : manifest_.factors) {
      const std::vector<SizesType> shape(factor.shape.begin(), factor.shape.end());
      kept.push_back(from_blob(given.data() + at, shape, ScalarType::Float));
      at += factor.size;
    }
    std::vector<EValue> inputs(kept.begin(), kept.end());
    const NoThreadPoolGuard alone;  // one thread, as the Python node: the device has other work
    auto result = module_->forward(inputs);
    if (!result.ok() || result->size() != 2 + trained_) broken("ExecuTorch cannot run step.pte");
    Floats out;
    out.reserve(manifest_.size(manifest_.trained));
    std::size_t number = 2;
    for (const Factor& factor : manifest_.factors) {
      if (manifest_.trained.find(factor.kind) == std::string::npos) continue;
      const EValue& value = result->at(number++);
      if (!value.isTensor()) broken("step.pte gives something else than gradients");
      const auto& tensor = value.toTensor();
      if (tensor.scalar_type() != ScalarType::Float || tensor.numel() != static_cast<ssize_t>(factor.size))
        broken("step.pte gives something else than gradients");
      const float* data = tensor.const_data_ptr<float>();
      out.insert(out.end(), data, data + factor.size);
    }
    return out;
  }

 private:
  void require_interface() {
    auto meta = module_->method_meta("forward");
    if (!meta.ok()) broken("step.pte has no method forward");
    for (const Factor& factor : manifest_.factors)
      trained_ += manifest_.trained.find(factor.kind) != std::string::npos;
    if (meta->num_inputs() != 2 + manifest_.factors.size() || meta->num_outputs() != 2 + trained_)
      broken("step.pte takes or gives something else than step.json says");
    for (std::size_t i = 0; i < meta->num_inputs(); ++i) {
      auto tensor = meta->input_tensor_meta(i);
      if (!tensor.ok()) broken("step.pte takes or gives something else than step.json says");
      const std::vector<std::int64_t> sizes(tensor->sizes().begin(), tensor->sizes().end());
      const std::vector<std::int64_t> row = {1, manifest_.length};
      const bool tokens = i < 2;
      if (tensor->scalar_type() != (tokens ? ScalarType::Long : ScalarType::Float) ||
          sizes != (tokens ? row : manifest_.factors[i - 2].shape))
        broken("step.pte takes or gives something else than step.json says");
    }
  }

  const Manifest manifest_;
  std::unique_ptr<Module> module_;
  std::size_t trained_ = 0;
};

}  // namespace

std::unique_ptr<Engine> open_engine(const std::string& folder, const Manifest& manifest) {
  return std::make_unique<ExecutorchEngine>(folder, manifest);
}

}  // namespace fedslm
