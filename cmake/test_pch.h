// What nearly every test of a torch module needs (see MoebiusModule.cmake).
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "torch_pch.h"
