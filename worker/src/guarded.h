// A C++ exception must not unwind into Rust, so that each function returns its text, or null.

#pragma once

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

template <class Body>
char* guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an unknown exception");
  }
}
