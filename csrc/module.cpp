// The extension module: importing it registers the bodies. Built against the stable ABI of libtorch and of CPython,
// so one binary serves every torch from 2.10 and every CPython from 3.10.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/bodies.h"
#include "cpu/tiers.h"

STABLE_TORCH_LIBRARY_IMPL(fastsal_body, CPU, m) {
  m.impl("random_start", TORCH_BOX(&fastsal::random_start));
  m.impl("pgd_step", TORCH_BOX(&fastsal::pgd_step));
  m.impl("truncated_cross_entropy", TORCH_BOX(&fastsal::truncated_cross_entropy));
  m.impl("margin_loss", TORCH_BOX(&fastsal::margin_loss));
  m.impl("kl_divergence", TORCH_BOX(&fastsal::kl_divergence));
  m.impl("retire", TORCH_BOX(&fastsal::retire));
}

static PyObject* cpu_tier(PyObject*, PyObject*) { return PyUnicode_FromString(fastsal::tier_name()); }

// What the CUDA bodies were compiled for; the build fills it in, and without CUDA sources it is empty.
#ifndef FASTSAL_CUDA_TARGETS
#define FASTSAL_CUDA_TARGETS ""
#endif
static PyObject* cuda_targets(PyObject*, PyObject*) { return PyUnicode_FromString(FASTSAL_CUDA_TARGETS); }

static PyMethodDef methods[] = {
    {"cpu_tier", cpu_tier, METH_NOARGS, "Instruction set that the CPU bodies run on: baseline, avx2 or avx512."},
    {"cuda_targets", cuda_targets, METH_NOARGS, "GPU architectures that the CUDA bodies were built for, or ''."},
    {nullptr, nullptr, 0, nullptr},
};

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() {
  try {
    fastsal::tier();  // a wrong FASTSAL_CPU_TIER is refused at import, not in the middle of a run
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  return PyModule_Create(&module);
}
