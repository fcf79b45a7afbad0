#include "transform.hpp"

#include <set>
#include <stdexcept>
#include <string>

namespace secateur {
namespace {

void need(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("cannot make a linear transform: need ") + what);
}

}  // namespace

bool Transform::extended(const std::vector<Baby>& babies) {
    for (const Baby& baby : babies) {
        if (baby.element != kIdentity) return true;
    }
    return false;
}

Transform::Transform(const Ring& ring, std::size_t level, std::size_t inputs, std::size_t outputs, std::vector<Baby> babies,
                     std::vector<Group> groups, std::vector<Cell> cells,
                     std::vector<std::shared_ptr<const Plaintext>> plaintexts)
    : ring_(&ring), level_(level), inputs_(inputs), outputs_(outputs), babies_(std::move(babies)), groups_(std::move(groups)),
      cells_(std::move(cells)), plaintexts_(std::move(plaintexts)), extended_(extended(babies_)), giants_(false),
      compact_(false), constant_(true) {
    need(level <= ring.max_level(), "a level of this ring");
    const u64 elements = 2 * ring.degree();
    for (const Baby& baby : babies_) {
        need(baby.input < inputs_ && baby.element % 2 == 1 && baby.element < elements, "babies of the inputs");
    }
    std::vector<bool> reached(outputs_, false);
    std::set<std::pair<std::size_t, u64>> distinct;
    for (const Group& group : groups_) {
        need(group.output < outputs_ && group.element % 2 == 1 && group.element < elements, "groups of the outputs");
        need(distinct.emplace(group.output, group.element).second, "distinct groups");
        reached[group.output] = true;
        giants_ = giants_ || group.element != kIdentity;
    }
    for (const bool found : reached) need(found, "a group for every output");
    for (const auto& plain : plaintexts_) need(plain != nullptr && ring.made(plain->chain()), "plaintexts of this ring");
    first_cell_.assign(groups_.size() + 1, 0);
    std::size_t previous = 0;
    for (const Cell& cell : cells_) {
        need(cell.group >= previous && cell.group < groups_.size(), "cells in the order of their groups");
        need(cell.baby < babies_.size() && cell.plaintext < plaintexts_.size(), "cells of these babies and plaintexts");
        const Plaintext& plain = *plaintexts_[cell.plaintext];
        need(plain.level() == level, "plaintexts of the level");
        need(plain.extended() || !extended_, "plaintexts with special rows");
        compact_ = compact_ || plain.form() == Plaintext::Form::compact;
        constant_ = constant_ && plain.form() == Plaintext::Form::constant;
        previous = cell.group;
        ++first_cell_[cell.group + 1];
    }
    for (std::size_t g = 0; g < groups_.size(); ++g) {
        need(first_cell_[g + 1] > 0, "a cell for every group");
        first_cell_[g + 1] += first_cell_[g];
    }
}

}  // namespace secateur
