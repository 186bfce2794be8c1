// The exported step: one example's gradient, from a program that is not believed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common.h"
#include "config.h"

namespace fedslm {

struct Factor {
  std::string name, kind;
  std::vector<std::int64_t> shape;
  std::size_t size = 0;
};

// step.json, compared with its digest, and every file with its own.
struct Manifest {
  static Manifest load(const std::string& folder, const std::string& digest);

  std::string trained, weights;  // weights: the file of the frozen weights, or "" where it is empty
  std::int64_t length = 0, vocabulary = 0, rank = 0;
  double alpha = 0, clip = 0;  // clip: inside the program, 0 without
  std::vector<Factor> factors;

  std::size_t size(const std::string& kinds) const;
  void require_terms(const Terms& terms) const;
};

// Texts as tokens; made outside, by the tokenizer of the step (docs/native.md).
struct Example {
  Secret<std::int64_t> ids, labels;
};

std::vector<Example> load_examples(const std::string& path, const Manifest& manifest);

class Engine {
 public:
  virtual ~Engine() = default;
  // Every factor in, the gradient of those that train out; flat, in canonical order.
  virtual Floats gradient(const Example& example, const Floats& factors) = 0;
};

std::unique_ptr<Engine> open_engine(const std::string& folder, const Manifest& manifest);

}  // namespace fedslm
