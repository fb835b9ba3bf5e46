// What metal-cpp needs of Apple's header; complete types, no definitions.
#pragma once

struct objc_object {
  void* isa;
};
struct objc_selector;
typedef struct objc_object* id;
typedef struct objc_class* Class;
typedef struct objc_selector* SEL;
typedef struct objc_object Protocol;

extern "C" {
Class objc_lookUpClass(const char* name);
id objc_getProtocol(const char* name);
SEL sel_registerName(const char* name);
}
