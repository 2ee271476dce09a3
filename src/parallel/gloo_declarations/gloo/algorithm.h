// The wheel of libtorch ships ProcessGroupGloo.hpp without the headers of Gloo that it includes. What lies in
// this folder declares as much of them as that header needs to be read; none of it is called by name, and no
// object of these types is made outside libtorch.
#pragma once
