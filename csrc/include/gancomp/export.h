// Marks what libgancomp exports; everything else in it is hidden. C and C++.
#pragma once

#define GANCOMP_API __attribute__((visibility("default")))
