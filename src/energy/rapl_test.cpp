#include "energy/rapl.h"

#include <gtest/gtest.h>
#include <sys/fsuid.h>
#include <unistd.h>

#include <fstream>

#include "base/test_folder.h"

namespace moebius::energy {
namespace {

void put(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

void put_domain(const std::filesystem::path& folder, const std::string& name, const std::string& micro) {
  put(folder / "name", name + "\n");
  put(folder / "energy_uj", micro + "\n");
  put(folder / "max_energy_range_uj", "262143328850\n");
}

// Files are opened as nobody meanwhile, also when the tests run as root.
class AsNobody {
 public:
  AsNobody() : before_(setfsuid(65534)) {}
  ~AsNobody() { setfsuid(static_cast<uid_t>(before_)); }
  AsNobody(const AsNobody&) = delete;
  AsNobody& operator=(const AsNobody&) = delete;

 private:
  int before_;
};

std::vector<std::string> names_of(const RaplSurvey& survey, bool only_counted) {
  std::vector<std::string> names;
  for (const RaplDomain& domain : survey.domains) {
    if (domain.counted || !only_counted) names.push_back(domain.name);
  }
  return names;
}

TEST(Rapl, lists_readable_domains_once_and_counts_packages_and_memory) {
  TestFolder root;
  put_domain(root / "intel-rapl:1", "package-1", "1");
  put_domain(root / "intel-rapl:0", "package-0", "123456");
  put_domain(root / "intel-rapl:0:0", "core", "99");
  put_domain(root / "intel-rapl:0:1", "dram", "98");
  put_domain(root / "intel-rapl:2", "psys", "97");
  put_domain(root / "intel-rapl-mmio:0", "package-0", "123456");
  put(root / "intel-rapl/enabled", "1\n");
  const RaplSurvey survey = survey_rapl(root.path());
  EXPECT_TRUE(survey.present);
  EXPECT_EQ(survey.why, "");
  EXPECT_EQ(names_of(survey, false),
            (std::vector<std::string>{"core", "dram", "package-0", "package-1", "psys"}));
  EXPECT_EQ(names_of(survey, true), (std::vector<std::string>{"dram", "package-0", "package-1"}));
  EXPECT_DOUBLE_EQ(survey.domains[2].joules().value(), 0.123456);
  EXPECT_DOUBLE_EQ(survey.domains[2].range_joules, 262143.32885);
}

TEST(Rapl, says_how_to_get_permission) {
  TestFolder root;
  put_domain(root / "intel-rapl:0", "package-0", "123456");
  std::filesystem::permissions(root / "intel-rapl:0/energy_uj", std::filesystem::perms::none);
  const AsNobody nobody;
  const RaplSurvey survey = survey_rapl(root.path());
  EXPECT_TRUE(survey.present);
  EXPECT_TRUE(survey.domains.empty());
  EXPECT_NE(survey.why.find("readable by root only"), std::string::npos) << survey.why;
  EXPECT_NE(survey.why.find("chmod"), std::string::npos);
}

TEST(Rapl, names_a_counter_that_cannot_be_read) {
  TestFolder root;
  put_domain(root / "intel-rapl:0", "package-0", "unknown");
  const RaplSurvey survey = survey_rapl(root.path());
  EXPECT_TRUE(survey.present);
  EXPECT_TRUE(survey.domains.empty());
  EXPECT_NE(survey.why.find("intel-rapl:0/energy_uj: holds no number"), std::string::npos) << survey.why;
}

TEST(Rapl, says_why_there_is_none) {
  TestFolder root;
  const RaplSurvey survey = survey_rapl(root / "absent");
  EXPECT_FALSE(survey.present);
  EXPECT_NE(survey.why.find("no RAPL counter"), std::string::npos);
}

}  // namespace
}  // namespace moebius::energy
