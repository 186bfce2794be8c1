// In place of ExecuTorch where only what is around it is tested.
#include "step.h"

namespace fedslm {

std::unique_ptr<Engine> open_engine(const std::string&, const Manifest&) {
  throw Refusal("base-model-mismatch", "this build has no engine");
}

}  // namespace fedslm
