// Greedy generation with a model.pt that `packlight export --format torchscript` wrote, in libtorch alone.
//
//   generate MODEL.pt N_NEW ID [ID ...]
//
// takes the ids of the prompt's tokens and prints those of N_NEW more, one a line. Exit status 2 for bad arguments.

#include <torch/script.h>

#include <cstdint>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// A whole argument as a number that is not negative.
std::int64_t number(const std::string& text) {
  std::size_t used = 0;
  const std::int64_t value = std::stoll(text, &used);
  if (used != text.size() || value < 0) throw std::invalid_argument(text);
  return value;
}

// Appends `ids` to what the cache holds and returns the token with the largest logit behind them.
std::int64_t next(torch::jit::Module& model, const torch::Tensor& ids, const torch::Tensor& cache,
                  std::int64_t position) {
  // keep = 1: logits of the last position only. The cache is extended in place.
  const auto out = model.forward({ids, cache, position, std::int64_t{1}}).toTuple();
  return out->elements()[0].toTensor().flatten().argmax().item<std::int64_t>();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: generate MODEL.pt N_NEW ID [ID ...]\n";
    return 2;
  }
  std::int64_t n_new = 0;
  std::vector<std::int64_t> prompt;
  try {
    n_new = number(argv[2]);
    for (int i = 3; i < argc; ++i) prompt.push_back(number(argv[i]));
  } catch (const std::exception&) {
    std::cerr << "generate: N_NEW and every ID have to be whole numbers\n";
    return 2;
  }
  try {
    const torch::InferenceMode guard;
    auto model = torch::jit::load(argv[1], torch::kCPU);
    const auto length = static_cast<std::int64_t>(prompt.size());
    auto cache = model.get_method("new_cache")({length + n_new, std::int64_t{1}}).toTensor();
    auto ids = torch::tensor(prompt, torch::kInt64).unsqueeze(0);
    std::int64_t position = 0;
    for (std::int64_t i = 0; i < n_new; ++i) {
      const std::int64_t token = next(model, ids, cache, position);
      std::cout << token << '\n';
      position += ids.size(1);
      ids = torch::full({1, 1}, token, torch::kInt64);
    }
  } catch (const c10::Error& error) {
    std::cerr << "generate: " << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "generate: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
