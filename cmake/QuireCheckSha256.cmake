# quire_check_sha256(FILE SHA256): removes what was downloaded and fails, unless
# it is what was pinned.
function(quire_check_sha256 file sha256)
  file(SHA256 "${file}" actual)
  if(NOT actual STREQUAL sha256)
    file(REMOVE "${file}")
    message(
      FATAL_ERROR "${file} has sha256 ${actual}, expected ${sha256}."
                  " It was removed; run the same command again.")
  endif()
endfunction()
