locals {
  repository = "gs://${google_storage_bucket.repository.name}${var.prefix == "" ? "" : "/${var.prefix}"}"

  # By the name of the Kubernetes service account that acts as it.
  accounts = {
    "immich-backup"       = google_service_account.writer.email
    "immich-backup-prune" = google_service_account.pruner.email
  }
}

output "repository" {
  description = "What --repository takes."
  value       = local.repository
}

output "environment" {
  description = "The same for programs that run elsewhere: what all commands find in their environment."
  value = {
    IMMICH_BACKUP_REPOSITORY    = local.repository
    IMMICH_BACKUP_STORAGE_CLASS = var.storage_class
  }
}

output "backup_config" {
  description = "For `backup-config.yaml` of an overlay (deploy/kubernetes/overlays/gke): a patch of the ConfigMap."
  value = yamlencode({
    apiVersion = "v1"
    kind       = "ConfigMap"
    metadata   = { name = "backup-config" }
    data       = { repository = local.repository, storage_class = var.storage_class, verify_sample = var.verify_sample }
  })
}

output "kubernetes" {
  description = "For `service-accounts.yaml` of an overlay: patches that tie the Kubernetes service accounts to those of Google; empty without workload identity."
  value = !var.workload_identity ? "" : join("---\n", [for name, email in local.accounts : yamlencode({
    apiVersion = "v1"
    kind       = "ServiceAccount"
    metadata   = { name = name, annotations = { "iam.gke.io/gcp-service-account" = email } }
  })])
}

output "secret" {
  description = "What the Kubernetes secrets `backup-secrets` and `prune-secrets` take where the repository does not stand in the ConfigMap. Without workload identity each takes its own key beside it, as GCS_CREDENTIALS."
  value = {
    GCS_BUCKET = trimprefix(local.repository, "gs://")
  }
}

output "keys" {
  description = "Without workload identity: commands that make keys of the service accounts. Terraform makes none: its state would hold them."
  value = var.workload_identity ? {} : {
    for name, email in local.accounts : name => "gcloud iam service-accounts keys create ${name}.json --project ${var.project} --iam-account ${email}"
  }
}
