// The families of ops, a file each: every function appends its rows. A new family is a file, a line here and one in
// op_cases.cpp.
#pragma once

#include <vector>

#include "tests/op_cases.h"

namespace weft {

void add_pointwise(std::vector<OpRow>& rows);
void add_views(std::vector<OpRow>& rows);
void add_reductions(std::vector<OpRow>& rows);
void add_norms(std::vector<OpRow>& rows);
void add_products(std::vector<OpRow>& rows);
void add_embeddings(std::vector<OpRow>& rows);
void add_cross_entropies(std::vector<OpRow>& rows);
void add_convolutions(std::vector<OpRow>& rows);
void add_scans(std::vector<OpRow>& rows);
void add_ssds(std::vector<OpRow>& rows);
void add_attentions(std::vector<OpRow>& rows);
void add_custom_kernels(std::vector<OpRow>& rows);
void add_random(std::vector<OpRow>& rows);

}  // namespace weft
