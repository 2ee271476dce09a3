// How the experts' products are computed fastest on one GPU, as `moebius bench moe_layer --tune` has measured
// it there. A product that the table does not know goes by the rules built in (kernels/cuda/grouped_tiles.h,
// routed_rows_for in ops/grouped_mm.h). No libtorch. Not for use by several threads while it is replaced.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/api/grouped_gemm.h"

namespace moebius::ops {

// Which operand's rows come through an index.
enum class RoutedOperand : uint8_t { none, a, b };

// What the speed of a product depends on (kernels/api/grouped_gemm.h has the shapes).
struct ProductKey {
  kernels::GroupedGemmKind kind;
  bool activated;  // forward with SwiGLU of its result
  RoutedOperand routed;
  int64_t n, k, num_groups, num_rows;

  bool operator==(const ProductKey&) const = default;
};

ProductKey key_of(const kernels::GroupedGemmArgs& args);

// With `copy_rows`, the routed rows are copied first, and the plain product's own entry says the rest. Else
// by the kernel variant of that name (KernelTable::grouped_gemm_variants), or, without a name, not by a
// kernel of this form: by the product and a pass for the activation, or by libtorch.
struct ProductWay {
  bool copy_rows = false;
  std::string variant;

  bool operator==(const ProductWay&) const = default;
};

class ProductTable {
 public:
  struct Entry {
    ProductKey key;
    ProductWay way;
    double ms;  // of this way when it was measured
  };

  // That of a device in a file's text, empty when the file has other devices only. UserError that names
  // `what` for text that is no such file.
  static ProductTable parse(std::string_view text, const std::string& device, const std::string& what);

  // The text of a file with this table as that of `device`; those of other devices in `before` (text of a
  // file, or empty) stay.
  std::string text(const std::string& device, std::string_view before, const std::string& what) const;

  // Replaces the entry of an equal key.
  void add(Entry entry);

  // The way of the entry that differs in nothing but the number of rows, and there by the least, at most a
  // factor of two; null when there is none.
  const ProductWay* find(const ProductKey& key) const;

  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
};

// moebius/products.json below $XDG_CACHE_HOME (~/.cache); empty without a home.
std::filesystem::path default_product_table_path();

// The table in use; empty until one is set.
const ProductTable& product_table();
void set_product_table(ProductTable table);

// Reads the device's table from a file and uses it. UserError when the file is missing or no such file; a
// warning when it knows nothing of this device.
void use_product_table(const std::filesystem::path& path, const std::string& device);

// The same for the default path, where a missing file is nothing to speak of and a bad one is left alone with
// a warning.
void use_default_product_table(const std::string& device);

}  // namespace moebius::ops
