#include "ops/product_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"

namespace moebius::ops {
namespace {

using kernels::GroupedGemmKind;
using testing::AllOf;
using testing::HasSubstr;

ProductKey some_product(int64_t rows) {
  return {GroupedGemmKind::weight_grad, false, RoutedOperand::b, 1536, 2048, 128, rows};
}

ProductTable some_table() {
  ProductTable table;
  table.add({some_product(65536), {true, ""}, 0.5});
  table.add({some_product(262144), {false, "128x256"}, 2.0});
  table.add(
      {{GroupedGemmKind::forward, true, RoutedOperand::a, 1536, 2048, 128, 65536}, {false, "128x192"}, 0.7});
  return table;
}

std::string refusal(const std::string& text) {
  try {
    ProductTable::parse(text, "NVIDIA H200", "products.json");
  } catch (const UserError& error) {
    return error.what();
  }
  return "nothing";
}

TEST(ProductTable, reads_what_it_wrote) {
  const std::string text = some_table().text("NVIDIA H200", "", "products.json");
  const ProductTable again = ProductTable::parse(text, "NVIDIA H200", "products.json");
  ASSERT_EQ(again.entries().size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(again.entries()[i].key, some_table().entries()[i].key);
    EXPECT_EQ(again.entries()[i].way, some_table().entries()[i].way);
    EXPECT_EQ(again.entries()[i].ms, some_table().entries()[i].ms);
  }
}

TEST(ProductTable, keeps_the_measurements_of_other_devices) {
  const std::string of_one = some_table().text("NVIDIA H200", "", "products.json");
  const std::string of_two = ProductTable().text("NVIDIA H100 80GB HBM3", of_one, "products.json");
  EXPECT_EQ(ProductTable::parse(of_two, "NVIDIA H200", "products.json").entries().size(), 3u);
  EXPECT_TRUE(ProductTable::parse(of_two, "NVIDIA H100 80GB HBM3", "products.json").entries().empty());
  EXPECT_TRUE(ProductTable::parse(of_one, "NVIDIA H100 80GB HBM3", "products.json").entries().empty());
}

TEST(ProductTable, a_product_measured_again_replaces_the_first) {
  ProductTable table = some_table();
  table.add({some_product(65536), {false, "128x192"}, 0.4});
  EXPECT_EQ(table.entries().size(), 3u);
  EXPECT_EQ(table.find(some_product(65536))->variant, "128x192");
}

TEST(ProductTable, finds_the_nearest_number_of_rows) {
  const ProductTable table = some_table();
  EXPECT_TRUE(table.find(some_product(65536))->copy_rows);
  EXPECT_TRUE(table.find(some_product(40000))->copy_rows);
  EXPECT_TRUE(table.find(some_product(131000))->copy_rows);
  EXPECT_FALSE(table.find(some_product(131073))->copy_rows);
  EXPECT_FALSE(table.find(some_product(524288))->copy_rows);
  EXPECT_EQ(table.find(some_product(32000)), nullptr);
  EXPECT_EQ(table.find(some_product(540000)), nullptr);
}

TEST(ProductTable, knows_no_product_that_differs_otherwise) {
  const ProductTable table = some_table();
  ProductKey key = some_product(65536);
  key.routed = RoutedOperand::none;
  EXPECT_EQ(table.find(key), nullptr);
  key = some_product(65536);
  key.num_groups = 64;
  EXPECT_EQ(table.find(key), nullptr);
  key = some_product(65536);
  key.n = 1024;
  EXPECT_EQ(table.find(key), nullptr);
}

TEST(ProductTable, refuses_what_is_no_table) {
  const std::string good = some_table().text("NVIDIA H200", "", "products.json");
  EXPECT_THAT(refusal("{}"), AllOf(HasSubstr("products.json is no table"), HasSubstr("--tune")));
  EXPECT_THAT(refusal(R"({"format": 7, "devices": {}})"), HasSubstr("its format is 7, this program reads 1"));
  EXPECT_THAT(refusal(R"({"format": 1, "devices": []})"), HasSubstr("its devices are no object"));
  EXPECT_THAT(refusal("table"), HasSubstr("products.json"));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos);
    return refusal(text.replace(at, from.size(), to));
  };
  EXPECT_THAT(with("\"weight_grad\"", "\"sum\""), HasSubstr("kind is 'sum'"));
  EXPECT_THAT(with("\"n\": 1536", "\"n\": -1536"), HasSubstr("n is -1536"));
  EXPECT_THAT(with("\"variant\"", "\"tile\""), HasSubstr("variant"));
}

// Sets the table in use and leaves it empty behind itself.
class ProductTableInUse : public testing::Test {
 protected:
  void TearDown() override { set_product_table({}); }
  const TestFolder folder_;
};

TEST_F(ProductTableInUse, is_that_of_the_file) {
  const auto path = folder_.path() / "products.json";
  write_file_atomic(path, some_table().text("NVIDIA H200", "", "products.json"));
  use_product_table(path, "NVIDIA H200");
  EXPECT_EQ(product_table().entries().size(), 3u);
  testing::internal::CaptureStderr();
  use_product_table(path, "NVIDIA B200");
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("no products measured on NVIDIA B200"));
  EXPECT_TRUE(product_table().entries().empty());
  EXPECT_THROW(use_product_table(folder_.path() / "missing.json", "NVIDIA H200"), UserError);
}

TEST_F(ProductTableInUse, a_bad_default_file_is_left_alone_with_a_warning) {
  const char* before = std::getenv("XDG_CACHE_HOME");
  const std::string kept = before == nullptr ? "" : before;
  setenv("XDG_CACHE_HOME", folder_.path().c_str(), 1);
  EXPECT_EQ(default_product_table_path(), folder_.path() / "moebius" / "products.json");
  use_default_product_table("NVIDIA H200");
  EXPECT_TRUE(product_table().entries().empty());
  write_file_atomic(default_product_table_path(), "{}");
  testing::internal::CaptureStderr();
  use_default_product_table("NVIDIA H200");
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("go by the built-in rules"));
  EXPECT_TRUE(product_table().entries().empty());
  if (before == nullptr) {
    unsetenv("XDG_CACHE_HOME");
  } else {
    setenv("XDG_CACHE_HOME", kept.c_str(), 1);
  }
}

}  // namespace
}  // namespace moebius::ops
