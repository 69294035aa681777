// A CPU body called with the operands that a test lays out one after another (tools/mutants/libraries.py).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <utility>

struct Operand {
  torch::stable::Tensor::Memory memory;  // fewer than 0 dimensions: None
  int64_t integer;
  double real;
};

template <class T>
struct From;
template <>
struct From<torch::stable::Tensor> {
  static torch::stable::Tensor of(const Operand& operand) { return torch::stable::Tensor(&operand.memory); }
};
template <>
struct From<std::optional<torch::stable::Tensor>> {
  static std::optional<torch::stable::Tensor> of(const Operand& operand) {
    if (operand.memory.dimensions < 0) return std::nullopt;
    return torch::stable::Tensor(&operand.memory);
  }
};
template <>
struct From<int64_t> {
  static int64_t of(const Operand& operand) { return operand.integer; }
};
template <>
struct From<bool> {
  static bool of(const Operand& operand) { return operand.integer != 0; }
};
template <>
struct From<double> {
  static double of(const Operand& operand) { return operand.real; }
};

template <class... Parameters, size_t... at>
int64_t call(int64_t (*body)(Parameters...), const Operand* operands, std::index_sequence<at...>) {
  return body(From<Parameters>::of(operands[at])...);
}
template <class... Parameters>
int64_t call(int64_t (*body)(Parameters...), const Operand* operands) {
  return call(body, operands, std::index_sequence_for<Parameters...>());
}
