# A bucket for one repository, a writer that can neither overwrite nor delete, and a pruner that may remove what `prune` removes.

provider "google" {
  project = var.project
}

locals {
  # How keys of the repository begin in the bucket, and as the names of resources.
  root    = var.prefix == "" ? "" : "${var.prefix}/"
  objects = "projects/_/buckets/${var.bucket}/objects/${local.root}"

  # Where originals lie; lists and moves by prefix know no better than this.
  originals = ["config/", "external/", "library/library/", "library/profile/", "library/upload/"]

  # What `prune` removes, and `prune --derived`. Not the log, not format.json, no original.
  prunable         = ["database/", "manifests/"]
  prunable_derived = ["library/encoded-video/", "library/thumbs/", "versions/encoded-video/", "versions/thumbs/"]
  removed          = concat(local.prunable, var.prune_derived ? local.prunable_derived : [])

  # A motion photo's video lies among the transcoded ones, and Immich cannot make it again.
  kept_suffix = "-MP.mp4"
}

resource "google_storage_bucket" "repository" {
  # checkov:skip=CKV_GCP_78: nothing is ever overwritten, and soft delete keeps what is removed; with versions it would be paid for without end
  # checkov:skip=CKV_GCP_62: access logs of a bucket need another bucket and are best effort; turn on Data Access audit logs of the project instead
  name     = var.bucket
  location = var.location
  labels   = var.labels

  # Listings and all that is small and often read: the colder class is set on each original.
  storage_class = "STANDARD"

  # Rights by IAM alone, which conditions need, and never for everybody.
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  soft_delete_policy {
    retention_duration_seconds = var.soft_delete_days * 86400
  }

  dynamic "retention_policy" {
    for_each = var.retention_days > 0 ? [var.retention_days] : []
    content {
      retention_period = retention_policy.value * 86400
      is_locked        = var.retention_locked
    }
  }

  # What the program itself begins and does not end goes away after a week without this; what other tools begin by XML does not.
  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 7
    }
  }

  dynamic "lifecycle_rule" {
    for_each = var.move_originals_after_days == null ? [] : [var.move_originals_after_days]
    content {
      action {
        type          = "SetStorageClass"
        storage_class = var.storage_class
      }
      condition {
        age                   = lifecycle_rule.value
        matches_prefix        = [for prefix in local.originals : "${local.root}${prefix}"]
        matches_storage_class = ["STANDARD"]
      }
    }
  }

  # No rule removes anything: the log names each object, and what it names and nobody finds is damage. `prune` says it in the log first.

  lifecycle {
    prevent_destroy = true
  }
}
