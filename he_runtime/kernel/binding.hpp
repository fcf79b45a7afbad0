// What the two halves of the binding share.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "kernel.hpp"

// An available path by its name; ValueError otherwise.
secateur::Path path_named(const std::string& name);

void bind_evaluator(nanobind::module_& module);
void bind_hoisting(nanobind::module_& module);
